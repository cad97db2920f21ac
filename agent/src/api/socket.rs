//! Sockets of the agent for one user of the device each, as the kernel says who is there.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::sleep,
};

use crate::control::server;

/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(10);

/// Bytes of the head of a request.
const MAX_HEAD: usize = 16 << 10;

/// Lines of the head of a request.
const MAX_HEADERS: usize = 32;

/// The number of a user of this device, who shall `run` something.
///
/// # Errors
/// If there is none of this name, with the mend.
pub fn uid(user: &str, run: &str) -> Result<u32, String> {
    let path = "/etc/passwd";
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    ids(&text, user).map(|(uid, _)| uid).ok_or_else(|| {
        let user = user.escape_debug();
        format!("there is no user \"{user}\" to run {run}; `systemd-sysusers` makes the package's")
    })
}

/// The numbers of a user and of its group, from the text of `/etc/passwd`.
pub fn ids(text: &str, user: &str) -> Option<(u32, u32)> {
    let mut lines = text.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        if fields.next() != Some(user) {
            return None;
        }
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// A socket where anybody can knock. Who is let in is asked of the kernel: the agent may not give its files
/// to others.
///
/// # Errors
/// If it cannot be made.
pub fn bind(socket: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    server::bind(socket, 0o666)
}

/// Serves those who come as this user, so many at once, with the process's id if the kernel knows it.
/// Others, and more than there are places for, are sent away without a word.
pub async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: std::os::unix::net::UnixListener,
    uid: u32,
    places: usize,
    mut serve: impl FnMut(UnixStream, Option<i32>) -> F,
) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("a socket of the agent is of no use: {error}");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(places));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let peer = stream.peer_cred().ok().filter(|peer| peer.uid() == uid);
                let place = Arc::clone(&places).try_acquire_owned();
                let (Some(peer), Ok(place)) = (peer, place) else { continue };
                let served = serve(stream, peer.pid().filter(|pid| *pid > 0));
                tokio::spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely; trying at once would spin.
                tracing::warn!("a connection was not accepted: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// How requests are read.
pub fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        // One request: whoever is idle has no place.
        .keep_alive(false);
    http
}

#[cfg(test)]
mod tests {
    use super::{ids, uid};

    #[test]
    fn users_have_numbers() {
        assert_eq!(uid("root", "the link"), Ok(0));
        let missing = uid("nobody-of-this-name", "the link").expect_err("none");
        assert!(missing.contains("there is no user"), "{missing}");
        assert!(uid("roo", "the link").is_err() && uid("", "the link").is_err());
        let text = "a:x:1:2::/:/bin/sh\nbroken:x\nb:x:3:4::/:/bin/sh\n";
        assert_eq!(ids(text, "b"), Some((3, 4)));
        assert_eq!((ids(text, "broken"), ids(text, "c")), (None, None));
    }
}
