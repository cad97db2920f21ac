//! Catalogs that must be refused, each for a reason of its own, and one whose certificate has expired.
//! They list what nobody allows, and stand in `hostile`; `hostile/reasons` says why each is refused.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Lab, Leaf};

/// What a signer's certificate says that may sign code.
const LEAF: &str = "keyUsage=critical,digitalSignature\nextendedKeyUsage=codeSigning\n\
                    basicConstraints=critical,CA:FALSE\n";
const P256: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// SHA-256 and SHA-512 as object identifiers in DER.
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const SHA512: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03];

/// Makes all of them, with the authority `ca` and the signer `leaf` of the lab.
pub fn make(lab: &Lab<'_>) -> Result<()> {
    let folder = lab.path("hostile");
    fs::create_dir_all(&folder)?;
    lab.catalog("base", "evil", "1", &["evil"], &[])?;
    let mut made = Made { lab, folder, reasons: String::new() };
    made.wrong_algorithms()?;
    made.wrong_certificates()?;
    made.wrong_forms()?;
    made.several_signatures()?;
    made.digest_lists()?;
    fs::write(made.folder.join("reasons"), &made.reasons)?;
    expired(lab)
}

struct Made<'a> {
    lab: &'a Lab<'a>,
    folder: PathBuf,
    reasons: String,
}

impl Made<'_> {
    /// A catalog of this name, signed by `signer` with more arguments of `openssl cms`.
    fn signed(&mut self, name: &str, signer: &str, more: &[&str], reason: &str) -> Result<Vec<u8>> {
        let text = fs::read_to_string(self.lab.document("base"))?;
        self.text(name, &text.replace("# catalog: evil", &format!("# catalog: {name}")), reason)?;
        self.sign(name, signer, more)
    }

    fn text(&mut self, name: &str, text: &str, reason: &str) -> Result<()> {
        fs::write(self.document(name), text)?;
        self.reasons.push_str(&format!("{name}.catalog {reason}\n"));
        Ok(())
    }

    fn document(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.catalog"))
    }

    fn signature(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.catalog.p7s"))
    }

    fn sign(&self, name: &str, signer: &str, more: &[&str]) -> Result<Vec<u8>> {
        let (certificate, key) = (format!("{signer}.crt"), format!("{signer}.pem"));
        let (document, signature) = (self.document(name), self.signature(name));
        let mut words = vec!["cms", "-sign", "-binary", "-outform", "DER"];
        words.extend(["-signer", &certificate, "-inkey", &key]);
        words.extend(more);
        let (document, output) = (document.to_string_lossy(), signature.to_string_lossy());
        words.extend(["-in", &document, "-out", &output]);
        self.lab.run(&words)?;
        Ok(fs::read(&signature)?)
    }

    fn replace_signature(&self, name: &str, signature: &[u8]) -> Result<()> {
        Ok(fs::write(self.signature(name), signature)?)
    }

    fn wrong_algorithms(&mut self) -> Result<()> {
        self.signed("weak-hash", "leaf", &["-md", "sha1"], "weak-hash")?;
        for (name, key, reason) in [
            ("weak-key", &["rsa:1024"][..], "weak-key"),
            ("curve", &["ec", "-pkeyopt", "ec_paramgen_curve:P-521"], "unknown-algorithm"),
        ] {
            self.lab.leaf(&Leaf { name, issuer: "ca", subject: name, key, extensions: LEAF })?;
            self.signed(name, name, &[], reason)?;
        }
        // The signature's list of algorithms says one, the signer another.
        for (name, occurrence) in [("confused-list", 0), ("confused-signer", 1)] {
            let mut signature = self.signed(name, "leaf", &[], "algorithm-mismatch")?;
            let places = signature.windows(SHA256.len()).enumerate();
            let mut places = places.filter(|(_, bytes)| *bytes == SHA256).map(|(place, _)| place);
            let place = places.nth(occurrence).context("no such algorithm in the signature")?;
            signature[place..place + SHA512.len()].copy_from_slice(SHA512);
            self.replace_signature(name, &signature)?;
        }
        Ok(())
    }

    fn wrong_certificates(&mut self) -> Result<()> {
        for (name, extensions) in [
            ("for-email", "keyUsage=digitalSignature\nextendedKeyUsage=emailProtection\n"),
            ("for-secrets", "keyUsage=keyEncipherment\n"),
        ] {
            self.lab.leaf(&Leaf { name, issuer: "ca", subject: name, key: P256, extensions })?;
            self.signed(name, name, &[], "wrong-usage")?;
        }
        self.signed("by-authority", "ca", &[], "wrong-usage").map(drop)
    }

    fn wrong_forms(&mut self) -> Result<()> {
        let signature = self.signed("truncated", "leaf", &[], "truncated")?;
        self.replace_signature("truncated", &signature[..signature.len() - 1])?;
        let mut signature = self.signed("trailing", "leaf", &[], "trailing-data")?;
        signature.push(0);
        self.replace_signature("trailing", &signature)?;
        self.signed("ber", "leaf", &["-stream"], "not-der")?;
        self.signed("empty", "leaf", &[], "truncated")?;
        self.replace_signature("empty", b"")
    }

    fn several_signatures(&mut self) -> Result<()> {
        // In one message: a good one and a stranger's; two good ones of which one was damaged.
        let mallory = ["-signer", "mallory.crt", "-inkey", "mallory.pem"];
        self.signed("good-and-stranger", "leaf", &mallory, "untrusted-signer")?;
        let second =
            Leaf { name: "second", issuer: "ca", subject: "x", key: P256, extensions: LEAF };
        self.lab.leaf(&Leaf { subject: "ACME release", ..second })?;
        let more = ["-signer", "second.crt", "-inkey", "second.pem"];
        let mut signature = self.signed("good-and-damaged", "leaf", &more, "bad-signature")?;
        // The last byte is one of the signature that comes last.
        let last = signature.last_mut().context("no signature")?;
        *last ^= 1;
        self.replace_signature("good-and-damaged", &signature)?;
        // In two files.
        self.signed("good-and-raw", "leaf", &[], "bad-signature")?;
        Ok(fs::write(self.folder.join("good-and-raw.catalog.sig"), [7; 64])?)
    }

    /// Lists of other digests than SHA-256, rightly signed.
    fn digest_lists(&mut self) -> Result<()> {
        let good = fs::read_to_string(self.lab.document("base"))?;
        let line = good.lines().find(|line| !line.starts_with('#')).context("no entry")?;
        let digest = line.split(' ').next().unwrap_or_default();
        ensure!(digest.len() == 64, "{digest}");
        for (name, other) in [
            ("list-sha512", digest.repeat(2)),
            ("list-sha1", digest[..40].to_owned()),
            ("list-named", format!("sha512:{digest}")),
        ] {
            let text = good.replace("# catalog: evil", &format!("# catalog: {name}"));
            self.text(name, &text.replace(digest, &other), "malformed")?;
            self.sign(name, "leaf", &[])?;
        }
        Ok(())
    }
}

/// `old.crt`, an authority, and `expired`, a catalog by a signer whose certificate ended in 2022.
fn expired(lab: &Lab<'_>) -> Result<()> {
    let authority = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n";
    lab.dated("old", "old", authority, ("20200101000000Z", "20400101000000Z"))?;
    lab.dated("expired", "old", LEAF, ("20210101000000Z", "20220101000000Z"))?;
    lab.catalog("expired", "expired", "1", &["program"], &[])?;
    let document = lab.document("expired");
    let signature = format!("{}.p7s", document.display());
    lab.run(&[
        "cms",
        "-sign",
        "-binary",
        "-outform",
        "DER",
        "-signer",
        "expired.crt",
        "-inkey",
        "expired.pem",
        "-in",
        &document.to_string_lossy(),
        "-out",
        &signature,
    ])
}
