//! What the scenarios about signatures need: keys, certificates and signed catalogs, made as a maker
//! would make them, with OpenSSL and with our own tool.

mod hostile;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    build::Built,
    command::{command, quietly},
};

/// Makes everything in `folder`:
///
/// * `ca.crt`, an authority; `leaf.crt`, which it has issued, and `other.crt`, which nobody has;
/// * `operator.pub.pem`, an Ed25519 key;
/// * `program`, `tool`, `sleeper` and `evil`, programs that no policy lists;
/// * `NAME/NAME.catalog` with a signature, for each `NAME` below;
/// * what must be refused in `hostile`, and `expired`.
pub fn make(built: &Built, folder: &Path) -> Result<()> {
    let lab = Lab { built, folder: folder.to_owned() };
    fs::create_dir_all(folder)?;
    lab.authority("ca", "ACME CA")?;
    lab.authority("other", "Mallory CA")?;
    for (name, issuer, subject) in
        [("leaf", "ca", "ACME release"), ("mallory", "other", "Mallory release")]
    {
        let extensions = "keyUsage=critical,digitalSignature\nextendedKeyUsage=codeSigning\n\
                          basicConstraints=critical,CA:FALSE\n";
        lab.leaf(&Leaf { name, issuer, subject, key: &["rsa:3072"], extensions })?;
    }
    quietly(command(&lab.agent(), ["key", "generate", "-o"]).arg(lab.path("operator.pem")))?;
    for name in ["program", "tool", "evil"] {
        let mut write = Command::new(&built.guest);
        quietly(write.args(["write-program", "66", name]).arg(lab.path(name)))?;
    }
    // A byte after the end changes the digest, and nothing else.
    let mut sleeper = fs::read("/bin/sleep")?;
    sleeper.push(0);
    fs::write(lab.path("sleeper"), sleeper)?;
    fs::set_permissions(lab.path("sleeper"), fs::Permissions::from_mode(0o755))?;
    // By the maker, with OpenSSL: version 1 lists the program, 2 takes it back.
    lab.catalog("pump-1", "pump", "1", &["program", "sleeper"], &[])?;
    lab.openssl("pump-1", "leaf", "ca")?;
    let old = lab.document("pump-1");
    lab.catalog("pump-2", "pump", "2", &["tool"], &["--withdraw-from", &old.to_string_lossy()])?;
    lab.openssl("pump-2", "leaf", "ca")?;
    // By the operator, with our own tool.
    lab.catalog("tools", "tools", "1", &["tool"], &[])?;
    lab.sign("tools", &["--key", "operator.pem"])?;
    // The operator's next key, which the present one vouches for, and what it signs.
    quietly(command(&lab.agent(), ["key", "generate", "-o"]).arg(lab.path("next.pem")))?;
    fs::create_dir_all(lab.path("next"))?;
    let rotate = ["key", "rotate", "--signer", "plant", "--new", "next.pub.pem", "-o"];
    let statement = lab.path("next/next.rotation");
    quietly(command(&lab.agent(), rotate).arg(&statement).current_dir(folder))?;
    let sign = ["catalog", "sign", "--key", "operator.pem"];
    quietly(command(&lab.agent(), sign).arg(&statement).current_dir(folder))?;
    lab.catalog("tools-2", "tools", "2", &["tool"], &[])?;
    lab.sign("tools-2", &["--key", "next.pem"])?;
    // By somebody else; by nobody; and changed afterwards.
    for name in ["untrusted", "unsigned", "changed"] {
        lab.catalog(name, name, "1", &["evil"], &[])?;
    }
    lab.openssl("untrusted", "mallory", "other")?;
    lab.catalog("changed", "changed", "1", &["program"], &[])?;
    lab.openssl("changed", "leaf", "ca")?;
    lab.catalog("changed", "changed", "1", &["evil"], &[])?;
    hostile::make(&lab)
}

/// A signer's certificate and key, for a year from now.
struct Leaf<'a> {
    name: &'a str,
    issuer: &'a str,
    subject: &'a str,
    /// What `openssl req -newkey` takes.
    key: &'a [&'a str],
    extensions: &'a str,
}

struct Lab<'a> {
    built: &'a Built,
    folder: PathBuf,
}

impl Lab<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn document(&self, name: &str) -> PathBuf {
        self.folder.join(name).join(format!("{name}.catalog"))
    }

    fn agent(&self) -> String {
        self.built.agent.display().to_string()
    }

    fn authority(&self, name: &str, subject: &str) -> Result<()> {
        let (key, certificate) = (format!("{name}.pem"), format!("{name}.crt"));
        let subject = format!("/O=ACME/CN={subject}");
        self.run(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &certificate,
            "-subj",
            &subject,
            "-days",
            "3650",
            "-addext",
            "keyUsage=critical,keyCertSign",
        ])
    }

    fn leaf(&self, leaf: &Leaf<'_>) -> Result<()> {
        let Leaf { name, issuer, subject, key, extensions } = leaf;
        fs::write(self.path("leaf.cnf"), extensions)?;
        let (file, request) = (format!("{name}.pem"), format!("{name}.csr"));
        let subject = format!("/O=ACME/CN={subject}");
        let mut words = vec!["req", "-new", "-nodes", "-keyout", &file, "-out", &request];
        words.extend(["-subj", &subject, "-newkey"]);
        words.extend(*key);
        self.run(&words)?;
        self.run(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &format!("{issuer}.crt"),
            "-CAkey",
            &format!("{issuer}.pem"),
            "-out",
            &format!("{name}.crt"),
            "-days",
            "365",
            "-extfile",
            "leaf.cnf",
        ])
    }

    /// A certificate that is valid between two dates, by another one or by itself.
    fn dated(
        &self,
        name: &str,
        issuer: &str,
        extensions: &str,
        (from, until): (&str, &str),
    ) -> Result<()> {
        // `openssl x509` of Debian 12 counts days from now on only; `openssl ca` takes dates.
        let config = "[ca]\ndefault_ca=d\n[d]\ndatabase=dated.db\nnew_certs_dir=.\n\
                      rand_serial=yes\ndefault_md=sha256\npolicy=p\nunique_subject=no\n[p]\n\
                      organizationName=optional\ncommonName=optional\n";
        for (file, content) in [("dated.cnf", config), ("dated.db", ""), ("dated.ext", extensions)]
        {
            fs::write(self.path(file), content)?;
        }
        let (key, request) = (format!("{name}.pem"), format!("{name}.csr"));
        let subject = format!("/O=ACME/CN={name}");
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        let mut words = vec!["req", "-new", "-nodes", "-keyout", &key, "-out", &request];
        words.extend(["-subj", &subject]);
        words.extend(curve);
        self.run(&words)?;
        let (by, by_key) = (format!("{issuer}.crt"), format!("{issuer}.pem"));
        let output = format!("{name}.crt");
        let mut words = vec!["ca", "-batch", "-notext", "-config", "dated.cnf", "-extfile"];
        words.extend(["dated.ext", "-in", &request, "-out", &output, "-keyfile", &by_key]);
        words.extend(["-startdate", from, "-enddate", until]);
        if name == issuer {
            words.push("-selfsign");
        } else {
            words.extend(["-cert", &by]);
        }
        self.run(&words)
    }

    fn catalog(
        &self,
        file: &str,
        name: &str,
        version: &str,
        of: &[&str],
        more: &[&str],
    ) -> Result<()> {
        let document = self.document(file);
        fs::create_dir_all(document.parent().context("a folder")?)?;
        let manifest = self.path("one.manifest");
        let scan = ["scan", "-o"];
        let of = of.iter().map(|name| self.path(name));
        quietly(command(&self.agent(), scan).arg(&manifest).args(of))?;
        let make = ["catalog", "make", "--name", name, "--version", version, "--from"];
        let mut make = command(&self.agent(), make);
        quietly(make.arg(&manifest).args(more).arg("-o").arg(&document)).map(drop)
    }

    /// As a maker's own tooling does.
    fn openssl(&self, file: &str, signer: &str, issuer: &str) -> Result<()> {
        let document = self.document(file);
        let signature = format!("{}.p7s", document.display());
        self.run(&[
            "cms",
            "-sign",
            "-binary",
            "-outform",
            "DER",
            "-signer",
            &format!("{signer}.crt"),
            "-inkey",
            &format!("{signer}.pem"),
            // An option of the signer before it.
            "-keyopt",
            "rsa_padding_mode:pss",
            "-keyopt",
            "rsa_pss_saltlen:digest",
            "-certfile",
            &format!("{issuer}.crt"),
            "-in",
            &document.to_string_lossy(),
            "-out",
            &signature,
        ])
    }

    fn sign(&self, file: &str, arguments: &[&str]) -> Result<()> {
        let mut sign = command(&self.agent(), ["catalog", "sign"]);
        quietly(sign.current_dir(&self.folder).arg(self.document(file)).args(arguments)).map(drop)
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        quietly(Command::new("openssl").current_dir(&self.folder).args(arguments)).map(drop)
    }
}
