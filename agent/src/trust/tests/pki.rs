//! Keys, certificates and signatures, made by the `openssl` program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use portcullis_common::Kinds;
use tempfile::TempDir;

use crate::trust::{
    Anchor, Certificate, PublicKey, Requirements, Revocations, Signer, Slot, Trust,
    sign::PrivateKey,
};

/// What all signatures of the tests are over.
pub const CONTENT: &[u8] = b"sha256:00 executable\nline\r\n";

const KEYS: [(&str, &[&str]); 9] = [
    ("root", &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
    ("inter", &["EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
    ("rsa2048", &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
    ("rsa3072", &["RSA", "-pkeyopt", "rsa_keygen_bits:3072"]),
    ("rsa1024", &["RSA", "-pkeyopt", "rsa_keygen_bits:1024"]),
    ("p256", &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
    ("p384", &["EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
    ("p521", &["EC", "-pkeyopt", "ec_paramgen_curve:P-521"]),
    ("ed25519", &["ED25519"]),
];

const CA: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n\
                  subjectKeyIdentifier=hash\n";
const LEAF: &str = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
                    extendedKeyUsage=codeSigning\nsubjectKeyIdentifier=hash\n";
const LEAF_SUBJECT: &str = "/O=Acme/OU=Firmware/CN=Release";
/// Long before and after whenever the tests run.
const ALWAYS: (&str, &str) = ("20200101000000Z", "20400101000000Z");

struct Made {
    name: &'static str,
    key: &'static str,
    /// Itself, if it is its own.
    issuer: &'static str,
    subject: &'static str,
    extensions: &'static str,
    window: (&'static str, &'static str),
    arguments: &'static [&'static str],
}

const fn leaf(name: &'static str, key: &'static str) -> Made {
    let (issuer, subject) = ("inter", LEAF_SUBJECT);
    Made { name, key, issuer, subject, extensions: LEAF, window: ALWAYS, arguments: &[] }
}

const fn ca(name: &'static str, key: &'static str, issuer: &'static str) -> Made {
    // The name is the subject, which ties the chain together.
    Made { name, key, issuer, subject: name, extensions: CA, window: ALWAYS, arguments: &[] }
}

const CERTIFICATES: &[Made] = &[
    ca("root", "root", "root"),
    Made {
        extensions: "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n\
                     subjectKeyIdentifier=hash\n",
        ..ca("inter", "inter", "root")
    },
    leaf("leaf", "p256"),
    leaf("rsa2048", "rsa2048"),
    leaf("rsa3072", "rsa3072"),
    leaf("p384", "p384"),
    leaf("ed25519", "ed25519"),
    Made { extensions: "subjectKeyIdentifier=hash\n", ..leaf("plain", "p256") },
    Made { arguments: &["-md", "sha1"], ..leaf("sha1", "p256") },
    leaf("weak", "rsa1024"),
    leaf("curve", "p521"),
    Made { extensions: "extendedKeyUsage=emailProtection\n", ..leaf("email", "p256") },
    Made { extensions: "keyUsage=keyEncipherment\n", ..leaf("encipher", "p256") },
    Made { extensions: "1.2.3.4=critical,DER:0500\n", ..leaf("critical", "p256") },
    Made { window: ("20210101000000Z", "20220101000000Z"), ..leaf("expired", "p256") },
    Made { window: ("20380101000000Z", "20390101000000Z"), ..leaf("future", "p256") },
    Made { window: ("20100101000000Z", "20110101000000Z"), ..leaf("never", "p256") },
    ca("signing-ca", "p256", "root"),
    // Deeper than `inter` allows.
    ca("deep", "p256", "inter"),
    Made { issuer: "deep", ..leaf("below-deep", "p384") },
    // Issuers that are none.
    Made { extensions: "basicConstraints=CA:FALSE\n", ..ca("no-ca", "p256", "root") },
    Made { issuer: "no-ca", ..leaf("below-no-ca", "p384") },
    Made {
        extensions: "basicConstraints=CA:TRUE\nkeyUsage=digitalSignature\n",
        ..ca("no-cert-sign", "p256", "root")
    },
    Made { issuer: "no-cert-sign", ..leaf("below-no-cert-sign", "p384") },
    Made {
        extensions: "basicConstraints=CA:TRUE\nnameConstraints=critical,permitted;DNS:acme.example\n",
        ..ca("named", "p256", "root")
    },
    Made {
        issuer: "named",
        extensions: "subjectAltName=DNS:plant.acme.example\n",
        ..leaf("below-named", "p384")
    },
    Made {
        issuer: "named",
        extensions: "subjectAltName=DNS:other.example\n",
        ..leaf("outside-named", "p384")
    },
    Made {
        extensions: "basicConstraints=CA:TRUE\n\
                     nameConstraints=critical,permitted;dirName:inside\n[inside]\nO=Acme\n",
        ..ca("directory", "p256", "root")
    },
    Made { issuer: "directory", ..leaf("below-directory", "p384") },
    Made {
        extensions: "basicConstraints=CA:TRUE\n1.2.3.4=critical,DER:0500\n",
        ..ca("critical-ca", "p256", "root")
    },
    Made { issuer: "critical-ca", ..leaf("below-critical-ca", "p384") },
    ca("weak-ca", "rsa1024", "root"),
    Made { issuer: "weak-ca", ..leaf("below-weak-ca", "p384") },
    Made {
        extensions: "basicConstraints=CA:TRUE\nextendedKeyUsage=serverAuth\n",
        ..ca("server-ca", "p256", "root")
    },
    Made { issuer: "server-ca", ..leaf("below-server-ca", "p384") },
    // A chain of RSA with PSS, from a root of its own.
    ca("rsa-root", "rsa3072", "rsa-root"),
    Made {
        issuer: "rsa-root",
        arguments: &["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"],
        ..leaf("below-pss", "p256")
    },
    Made { issuer: "rsa-root", arguments: &["-md", "sha512"], ..leaf("below-rsa", "p256") },
    // The same names as the real ones, by somebody else.
    Made { subject: "root", ..ca("false-root", "p384", "false-root") },
    Made { subject: "inter", ..ca("false-inter", "p256", "false-root") },
    Made { issuer: "false-inter", ..leaf("false-leaf", "rsa2048") },
    // A CA that nobody knows, and one of its name that the real root seems to have signed.
    ca("heap", "p256", "heap"),
    Made {
        subject: "heap",
        window: ("20380101000000Z", "20390101000000Z"),
        ..ca("heap-by-root", "p384", "false-root")
    },
    Made { issuer: "heap", ..leaf("below-heap", "rsa2048") },
];

/// The directory with everything.
pub struct Pki {
    directory: TempDir,
}

pub static PKI: LazyLock<Pki> = LazyLock::new(Pki::make);

impl Pki {
    fn make() -> Self {
        let pki = Self { directory: tempfile::tempdir().expect("a directory") };
        for (name, arguments) in KEYS {
            let file = format!("{name}.key");
            pki.openssl(&[&["genpkey", "-quiet", "-out", &file, "-algorithm"], arguments].concat());
            pki.openssl(&["pkey", "-in", &file, "-pubout", "-out", &format!("{name}.pub")]);
        }
        fs::write(pki.path("content"), CONTENT).expect("written");
        fs::write(
            pki.path("ca.cnf"),
            "[ca]\ndefault_ca=d\n[d]\ndatabase=$ENV::DB\nnew_certs_dir=.\nrand_serial=yes\n\
             default_md=sha256\npolicy=p\nunique_subject=no\npreserve=yes\n[p]\n\
             organizationName=optional\norganizationalUnitName=optional\ncommonName=optional\n",
        )
        .expect("written");
        for made in CERTIFICATES {
            pki.certify(made);
        }
        pki
    }

    fn certify(&self, made: &Made) {
        let named = |kind: &str| format!("{}.{kind}", made.name);
        fs::write(self.path(&named("ext")), made.extensions).expect("written");
        fs::write(self.path(&named("db")), "").expect("written");
        let subject = match made.subject {
            subject if subject.starts_with('/') => subject.into(),
            name => format!("/O=Acme/CN={name}"),
        };
        let key = format!("{}.key", made.key);
        let request = named("csr");
        self.openssl(&["req", "-new", "-key", &key, "-subj", &subject, "-out", &request]);
        let (certificate, issuer_key) = if made.issuer == made.name {
            (None, key)
        } else {
            let issuer = CERTIFICATES.iter().find(|other| other.name == made.issuer);
            let issuer = issuer.expect("listed above");
            (Some(format!("{}.crt", issuer.name)), format!("{}.key", issuer.key))
        };
        let (from, until) = made.window;
        let (database, extensions, output) = (named("db"), named("ext"), named("crt"));
        let mut arguments = vec![
            "ca",
            "-batch",
            "-notext",
            "-config",
            "ca.cnf",
            "-in",
            &request,
            "-out",
            &output,
            "-extfile",
            &extensions,
            "-startdate",
            from,
            "-enddate",
            until,
            "-keyfile",
            &issuer_key,
        ];
        match &certificate {
            Some(certificate) => arguments.extend(["-cert", certificate]),
            None => arguments.push("-selfsign"),
        }
        arguments.extend(made.arguments);
        self.run(Command::new("openssl").args(arguments).env("DB", database));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, command: &mut Command) -> Vec<u8> {
        let output = command.current_dir(self.directory.path()).output().expect("openssl");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {errors}");
        output.stdout
    }

    pub fn openssl(&self, arguments: &[&str]) -> Vec<u8> {
        self.run(Command::new("openssl").args(arguments))
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("made above")
    }

    /// A file with the certificates of these names.
    pub fn bundle(&self, names: &[&str]) -> String {
        let file = format!("{}.bundle", names.join("-"));
        let all: Vec<_> = names.iter().map(|name| self.read(&format!("{name}.crt"))).collect();
        fs::write(self.path(&file), all.concat()).expect("written");
        file
    }

    pub fn certificate(&self, name: &str) -> Certificate {
        Certificate::read(&self.read(&format!("{name}.crt"))).expect("a certificate")
    }

    pub fn key(&self, name: &str) -> PublicKey {
        PublicKey::read(&self.read(&format!("{name}.pub"))).expect("a key")
    }

    pub fn private_key(&self, name: &str) -> PrivateKey {
        PrivateKey::read(&self.read(&format!("{name}.key"))).expect("a key")
    }

    /// A detached signature in DER by the certificate of this name, the chain's middle in it.
    pub fn sign(&self, name: &str, arguments: &[&str]) -> Vec<u8> {
        let made = CERTIFICATES.iter().find(|made| made.name == name).expect("listed above");
        let (signer, key) = (format!("{name}.crt"), format!("{}.key", made.key));
        let mut all = vec!["cms", "-sign", "-binary", "-outform", "DER", "-in", "content"];
        all.extend(["-signer", &signer, "-inkey", &key]);
        let issuer = format!("{}.crt", made.issuer);
        if !arguments.contains(&"-nocerts") && !arguments.contains(&"-certfile") {
            all.extend(["-certfile", &issuer]);
        }
        all.extend(arguments);
        self.openssl(&all)
    }

    /// Whether openssl accepts a signature over [`CONTENT`].
    pub fn accepts(&self, signature: &Path, arguments: &[&str]) -> bool {
        let output = Command::new("openssl")
            .args(["cms", "-verify", "-binary", "-inform", "DER", "-purpose", "any", "-in"])
            .arg(signature)
            .args(arguments)
            .current_dir(self.directory.path())
            .output();
        let output = output.expect("openssl");
        output.status.success() && output.stdout == CONTENT
    }
}

pub fn signer(name: &str, anchor: Anchor) -> Signer {
    Signer {
        name: name.into(),
        slot: Slot::Maker,
        kinds: Kinds::EXECUTABLE,
        anchor,
        valid_from: None,
        valid_until: None,
        requirements: Requirements::default(),
    }
}

/// Trusts the certificates of these names.
pub fn trusting(names: &[&str]) -> Trust {
    let anchor = |name: &&str| {
        signer(name, Anchor::certificate(PKI.certificate(name)).expect("a strong key"))
    };
    Trust { signers: names.iter().map(anchor).collect(), revoked: Revocations::default() }
}

/// Trusts the public key of this name.
pub fn trusting_key(name: &str) -> Trust {
    let signers = vec![signer(name, Anchor::Key(PKI.key(name)))];
    Trust { signers, revoked: Revocations::default() }
}
