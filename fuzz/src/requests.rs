//! What is asked of the agent: at its socket a line of JSON, over the network a line of HTTP, and what the door
//! to the network says for whom it asks and how it is.

use hyper::Method;
use portcullis::{
    api::{asked, claim, word::Word, written},
    control::{Request, caller::Role},
};

/// Drives the reading of a request. What is read at the socket is written as it can be read again; nothing
/// can be asked over the network that needs no role, and it can be written anew as the same; nothing that the
/// door says goes on with a control character in it.
pub fn drive(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(request) = serde_json::from_str::<Request>(text) {
        let written = serde_json::to_string(&request).expect("a request is JSON");
        assert_eq!(serde_json::from_str::<Request>(&written).expect("the same"), request);
    }
    if let Some(chain) = claim::read(text) {
        let anew = claim::written(&chain);
        assert!(anew.is_none_or(|anew| claim::read(&anew) == Some(chain)));
    }
    match Word::read(data) {
        Some(Word::Refused(turned)) => {
            assert!(turned.count > 0 && !turned.message.contains(char::is_control));
        }
        Some(Word::CannotListen { why, .. }) => assert!(!why.contains(char::is_control)),
        Some(Word::Listening { .. }) | None => {}
    }
    let (method, target) = text.split_once(' ').unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    match asked(&method, path, query) {
        Ok(request) => {
            assert!(Role::needed(&request).is_some(), "{request:?}");
            let (method, anew) = written(&request).expect("the door can ask for it");
            let (path, query) = anew.split_once('?').unwrap_or((&anew, ""));
            assert_eq!(asked(&method, path, query).ok(), Some(request));
        }
        Err((status, code, message)) => {
            assert!(status.is_client_error() && code == 2 && !message.is_empty(), "{message}");
        }
    }
}
