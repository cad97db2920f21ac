//! Mutual TLS 1.3, on the device and where its operators sit.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, Error, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};

/// Both ends are ours, so that nothing older is needed.
const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13];

/// Bytes of a file of certificates or keys.
const MAX_FILE: u64 = 1 << 20;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn about(path: &Path, what: impl std::fmt::Display) -> String {
    format!("{}: {what}", path.display())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    crate::catalog::folder::read(path, MAX_FILE).map_err(|why| format!("{} {why}", path.display()))
}

/// The certificates in a PEM file, at least one.
///
/// # Errors
/// With the file and the mend.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(about(path, "holds no certificate; give it in PEM (`BEGIN CERTIFICATE`)")),
        Err(error) => Err(about(path, format!("{error}; give certificates in PEM"))),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| {
        about(path, format!("{error}; give the private key in PEM, not encrypted"))
    })
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| {
            about(path, format!("{error}; give the certificates of authorities only"))
        })?;
    }
    Ok(roots)
}

fn mismatch(certificate: &Path, key: &Path, error: &Error) -> String {
    let message = match error {
        Error::InconsistentKeys(_) => {
            format!("is not the key of {}; give those that belong together", certificate.display())
        }
        error => format!("{error}; give the key of {}", certificate.display()),
    };
    about(key, message)
}

/// Judges certificates that are shown to the device: `client_ca` has signed those that count.
///
/// # Errors
/// With the file and the mend.
pub fn clients(client_ca: &Path) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let roots = Arc::new(roots(client_ca)?);
    WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| about(client_ca, error))
}

/// The device's end: whoever comes shows a certificate that `client_ca` has signed.
///
/// # Errors
/// With the file and the mend.
pub fn server(
    certificate: &Path,
    key_file: &Path,
    client_ca: &Path,
) -> Result<ServerConfig, String> {
    let clients = clients(client_ca)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(clients);
    let mut config = builder
        .with_single_cert(certificates(certificate)?, key(key_file)?)
        .map_err(|error| mismatch(certificate, key_file, &error))?;
    // A session that is resumed is not verified anew, and would outlive the certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The operator's end: devices show a certificate that `ca` has signed.
///
/// # Errors
/// With the file and the mend.
pub fn client(certificate: &Path, key_file: &Path, ca: &Path) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(ca)?);
    builder
        .with_client_auth_cert(certificates(certificate)?, key(key_file)?)
        .map_err(|error| mismatch(certificate, key_file, &error))
}

/// The device's end at a log server, which shows a certificate that `ca` has signed. `own` are the device's
/// certificate and key, if the server asks for one.
///
/// # Errors
/// With the file and the mend.
pub fn to_server(ca: &Path, own: Option<&(PathBuf, PathBuf)>) -> Result<ClientConfig, String> {
    if let Some((certificate, key)) = own {
        return client(certificate, key, ca);
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots(ca)?).with_no_client_auth())
}

/// Why a handshake was refused, as a stable word and for people.
#[must_use]
pub fn refusal(error: &Error) -> (&'static str, String) {
    match error {
        Error::NoCertificatesPresented => ("no-certificate", "no certificate was shown".into()),
        Error::InvalidCertificate(
            CertificateError::ExpiredContext { .. } | CertificateError::Expired,
        ) => ("expired-certificate", "the certificate has expired, or the clock is wrong".into()),
        Error::InvalidCertificate(_) => ("wrong-certificate", format!("{error}")),
        // What others wrote is not shown.
        Error::InvalidMessage(_) => ("no-tls", "what was said is not TLS".into()),
        _ => ("handshake", format!("{error}")),
    }
}
