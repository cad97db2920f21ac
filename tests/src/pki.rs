//! Certificates of a plant: one authority, and everybody whom it knows.

use std::{fs, path::PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::scenarios::fresh;

/// The authority.
pub struct Pki {
    /// Where they are: `ca.pem`, and `NAME.pem` with `NAME.key`.
    pub folder: PathBuf,
    ca: Issuer<'static, KeyPair>,
}

impl Pki {
    /// An authority, in a fresh folder.
    pub fn new(folder: &str) -> Result<Self> {
        let folder = fresh(folder)?.to_owned();
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "plant");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        fs::write(folder.join("ca.pem"), params.self_signed(&key)?.pem())?;
        Ok(Self { folder, ca: Issuer::new(params, key) })
    }

    /// Makes a certificate for somebody.
    pub fn make(&self, name: &str) -> Result<()> {
        self.make_for(name, &[name])
    }

    /// The same for one that is reached by these names and addresses.
    pub fn make_for(&self, name: &str, reached: &[&str]) -> Result<()> {
        let key = KeyPair::generate()?;
        let reached: Vec<_> = reached.iter().map(|&one| one.to_owned()).collect();
        let mut params = CertificateParams::new(reached)?;
        params.distinguished_name.push(DnType::CommonName, name);
        fs::write(self.path(&format!("{name}.pem")), params.signed_by(&key, &self.ca)?.pem())?;
        Ok(fs::write(self.path(&format!("{name}.key")), key.serialize_pem())?)
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}
