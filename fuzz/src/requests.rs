//! What is asked of the agent: at its socket a line of JSON, over the network a line of HTTP.

use hyper::Method;
use portcullis::{
    api::asked,
    control::{Request, caller::Role},
};

/// Drives the reading of a request. What is read at the socket is written as it can be read again; nothing
/// can be asked over the network that needs no role.
pub fn drive(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(request) = serde_json::from_str::<Request>(text) {
        let written = serde_json::to_string(&request).expect("a request is JSON");
        assert_eq!(serde_json::from_str::<Request>(&written).expect("the same"), request);
    }
    let (method, target) = text.split_once(' ').unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    match asked(&method, path, query) {
        Ok(request) => assert!(Role::needed(&request).is_some(), "{request:?}"),
        Err((status, code, message)) => {
            assert!(status.is_client_error() && code == 2 && !message.is_empty(), "{message}");
        }
    }
}
