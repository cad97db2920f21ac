//! Whom the door to the network speaks for: the certificates that somebody has shown it, and where they
//! come from.
//!
//! The door says so in the head of every request that it makes. The agent does not take its word for it: the
//! certificates must be good now, for the authority that the device's file names, and the file says what
//! their holder may do. That somebody holds the key to them is the door's word alone.

use std::{net::SocketAddr, sync::Arc};

use base64ct::{Base64, Encoding};
use rustls::{
    CertificateError, Error,
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};

use super::{config::Config, identity, tls};
use crate::control::caller::Peer;

/// The line with the certificates: in DER and base64, the holder's own first, with commas between.
pub const CERTIFICATES: &str = "portcullis-certificates";

/// The line with the address and port.
pub const ADDRESS: &str = "portcullis-address";

/// Certificates of one holder: its own, and those between it and the authority.
const MAX_CERTIFICATES: usize = 8;

/// Bytes of them.
const MAX_BYTES: usize = 24 << 10;

/// Bytes of a head with such lines.
pub const MAX_HEAD: usize = 64 << 10;

/// Certificates as they stand in a head; none if they are too many or too large.
pub fn written(chain: &[CertificateDer<'_>]) -> Option<String> {
    let bytes: usize = chain.iter().map(|certificate| certificate.len()).sum();
    if chain.is_empty() || chain.len() > MAX_CERTIFICATES || bytes > MAX_BYTES {
        return None;
    }
    let texts: Vec<_> = chain.iter().map(|one| Base64::encode_string(one)).collect();
    Some(texts.join(","))
}

/// The certificates that stand there; none if they are not written so.
pub fn read(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    // Base64 is longer by a third.
    if text.len() > MAX_BYTES * 2 {
        return None;
    }
    let parts: Vec<_> = text.split(',').take(MAX_CERTIFICATES + 1).collect();
    if parts.len() > MAX_CERTIFICATES {
        return None;
    }
    let decode = |part: &str| Base64::decode_vec(part).ok().filter(|bytes| !bytes.is_empty());
    parts.into_iter().map(|part| decode(part).map(CertificateDer::from)).collect()
}

/// Judges what the door says.
pub struct Clients {
    config: Config,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Clients {
    /// Those whom the device's file knows.
    ///
    /// # Errors
    /// If the certificates of their authority are of no use, with the file and the mend.
    pub fn new(config: Config) -> Result<Self, String> {
        let verifier = tls::clients(&config.client_ca)?;
        Ok(Self { config, verifier })
    }

    /// What the device's file says.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Who holds these certificates.
    ///
    /// # Errors
    /// If they are not good now.
    pub fn peer(&self, chain: &[CertificateDer<'_>], address: SocketAddr) -> Result<Peer, Error> {
        let Some((own, between)) = chain.split_first() else {
            return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
        };
        self.verifier.verify_client_cert(own, between, UnixTime::now())?;
        Ok(identity::peer(own, address, &self.config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_come_as_they_were_sent() {
        let chain = [vec![1, 2, 3], vec![255; 1000]].map(CertificateDer::from);
        let text = written(&chain).expect("small");
        assert_eq!(read(&text).as_deref(), Some(&chain[..]));
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "it can stand in a head");
    }

    #[test]
    fn what_is_too_much_is_not_written_and_not_read() {
        assert_eq!(written(&[]), None);
        let many = vec![CertificateDer::from(vec![1]); MAX_CERTIFICATES + 1];
        assert_eq!(written(&many), None);
        assert_eq!(written(&[vec![1; MAX_BYTES + 1].into()]), None);
        let largest = written(&[vec![1; MAX_BYTES].into()]).expect("just small enough");
        assert!(largest.len() + 1024 < MAX_HEAD && read(&largest).is_some());
        for text in
            ["", ",", "AQ==,", "AQ", "A Q=", "-", &["AQ=="; 9].join(","), &"A".repeat(1 << 20)]
        {
            assert_eq!(read(text), None, "{text:.20}");
        }
    }
}
