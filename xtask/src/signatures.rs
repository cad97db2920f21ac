//! What the scenarios about signatures on files need: programs and libraries signed by `evmctl`, and
//! modules signed by the kernel's own `sign-file`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    build::Built,
    command::{command, quietly},
    kernel::Kernel,
};

/// The kernel's own tool, as Debian packages it.
const SIGN_FILE: &str = "/usr/lib/linux-kbuild-6.1/scripts/sign-file";

/// Keys, each with how OpenSSL makes it.
const KEYS: [(&str, &[&str]); 5] = [
    ("rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"]),
    ("ec", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
    ("libraries", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
    ("stranger", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
    ("small", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]),
];

/// Programs, each with the key and the hash that sign it.
const PROGRAMS: [(&str, &str, &str); 10] = [
    ("by-rsa", "rsa", "sha256"),
    ("by-ec", "ec", "sha256"),
    ("late", "ec", "sha256"),
    ("by-sha384", "rsa", "sha384"),
    ("by-sha512", "ec", "sha512"),
    ("by-sha1", "rsa", "sha1"),
    ("by-stranger", "stranger", "sha256"),
    ("by-small", "small", "sha256"),
    ("by-libraries", "libraries", "sha384"),
    ("verity", "ec", "sha256"),
];

/// Libraries that differ, as a digest that is vouched for counts everywhere.
const LIBRARIES: [&str; 3] = ["before.so", "inside.so", "elsewhere.so"];

/// Makes everything in `folder`:
///
/// * `KEY.pub.pem` for each of the keys above;
/// * `PROGRAM` and `PROGRAM.sig`, the bytes of its `security.ima`, for each of the programs;
/// * `verity.sig`, over the fs-verity digest of `verity`, and not over its content;
/// * the libraries, likewise;
/// * `module.crt` and `other.crt`; `dummy-RELEASE.ko`, `.ko.xz`, `.ko.gz` and `.ko.zst` of each kernel, signed by the
///   first, and `dummy-RELEASE-late.ko`; `dummy-RELEASE-other.ko` by the second; and `program-with-module-signature`.
pub fn make(built: &Built, kernels: &[Kernel], libevil: &Path, folder: &Path) -> Result<()> {
    let lab = Lab { folder: folder.to_owned() };
    fs::create_dir_all(folder)?;
    for (name, how) in KEYS {
        let (key, public) = (format!("{name}.pem"), format!("{name}.pub.pem"));
        lab.openssl(&[&["genpkey", "-out", &key], how].concat())?;
        lab.openssl(&["pkey", "-in", &key, "-pubout", "-out", &public])?;
    }
    for (name, key, hash) in PROGRAMS {
        let mut write = Command::new(&built.guest);
        quietly(write.args(["write-program", "66", name]).arg(lab.path(name)))?;
        lab.evmctl(name, key, hash)?;
    }
    lab.verity("verity", "ec")?;
    let library = fs::read(libevil)?;
    for (salt, name) in (0..).zip(LIBRARIES) {
        fs::write(lab.path(name), [&library[..], &[salt]].concat())?;
        lab.evmctl(name, "rsa", "sha256")?;
    }
    lab.modules(built, kernels)
}

struct Lab {
    folder: PathBuf,
}

impl Lab {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn openssl(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let mut openssl = Command::new("openssl");
        Ok(quietly(openssl.current_dir(&self.folder).args(arguments))?.stdout)
    }

    /// Writes what would be the attribute into a file beside the other one.
    fn evmctl(&self, name: &str, key: &str, hash: &str) -> Result<()> {
        let key = format!("{key}.pem");
        let sign = ["ima_sign", "--sigfile", "--hashalgo", hash, "--key", &key, name];
        quietly(command("evmctl", sign).current_dir(&self.folder)).map(drop)
    }

    /// A signature over the digest that fs-verity verifies a file against. Debian 12's `evmctl`
    /// cannot make one yet, so that its bytes are put together here: `struct fsverity_descriptor`
    /// (Documentation/filesystems/fsverity.rst), `struct ima_file_id` (ima_appraise.c) and
    /// `struct signature_v2_hdr` (integrity.h).
    fn verity(&self, name: &str, key: &str) -> Result<()> {
        let content = fs::read(self.path(name))?;
        ensure!(content.len() <= 4096, "{name} has more than one block");
        let mut block = content.clone();
        block.resize(4096, 0);
        // Version, SHA-256, blocks of 4096 bytes; no salt, no signature.
        let mut descriptor = vec![1, 1, 12, 0, 0, 0, 0, 0];
        descriptor.extend((content.len() as u64).to_le_bytes());
        descriptor.extend(self.sha256(&block)?);
        descriptor.resize(256, 0);
        let digest = self.sha256(&descriptor)?;
        let signed = self.sha256(&[&[6, 4][..], &digest].concat())?;
        fs::write(self.path("signed"), signed)?;
        let key = format!("{key}.pem");
        let signature = self.openssl(&["pkeyutl", "-sign", "-inkey", &key, "-in", "signed"])?;
        let by_evmctl = fs::read(self.path(&format!("{name}.sig")))?;
        let key_id = by_evmctl.get(3..7).context("evmctl wrote no signature")?;
        let length = u16::try_from(signature.len())?.to_be_bytes();
        let attribute = [&[6, 3, 4][..], key_id, &length, &signature].concat();
        Ok(fs::write(self.path(&format!("{name}.sig")), attribute)?)
    }

    fn sha256(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        fs::write(self.path("hashed"), bytes)?;
        self.openssl(&["dgst", "-sha256", "-binary", "hashed"])
    }

    fn modules(&self, built: &Built, kernels: &[Kernel]) -> Result<()> {
        for name in ["module", "other"] {
            let (key, certificate) = (format!("{name}-key.pem"), format!("{name}.crt"));
            let subject = format!("/O=ACME/CN={name} signing");
            self.openssl(&[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
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
                "keyUsage=critical,digitalSignature",
                "-addext",
                "extendedKeyUsage=codeSigning",
            ])?;
        }
        for kernel in kernels {
            let release = kernel.modules.file_name().context("modules without a version")?;
            let release = release.to_string_lossy();
            let plain = format!("dummy-{release}.ko");
            let module = module_of(kernel, "dummy")?;
            let late = format!("dummy-{release}-late.ko");
            fs::write(self.path(&late), [&module[..], b"\0"].concat())?;
            self.sign_file(&late, "module", &late)?;
            fs::write(self.path(&plain), module)?;
            self.sign_file(&plain, "other", &format!("dummy-{release}-other.ko"))?;
            self.sign_file(&plain, "module", &plain)?;
            let mut pack = command("xz", ["--check=crc32", "--lzma2=dict=1MiB", "--stdout"]);
            let packed = quietly(pack.arg(self.path(&plain)))?.stdout;
            fs::write(self.path(&format!("{plain}.xz")), packed)?;
            for (packer, suffix) in [("gzip", "gz"), ("zstd", "zst")] {
                let packed = quietly(command(packer, ["-c"]).arg(self.path(&plain)))?.stdout;
                fs::write(self.path(&format!("{plain}.{suffix}")), packed)?;
            }
        }
        let program = "program-with-module-signature";
        quietly(
            Command::new(&built.guest)
                .args(["write-program", "66", program])
                .arg(self.path(program)),
        )?;
        self.sign_file(program, "module", program)
    }

    fn sign_file(&self, name: &str, signer: &str, to: &str) -> Result<()> {
        let (key, certificate) = (format!("{signer}-key.pem"), format!("{signer}.crt"));
        let sign = ["sha256", &key, &certificate, name, to];
        quietly(command(SIGN_FILE, sign).current_dir(&self.folder)).map(drop)
    }
}

/// A module's content, unpacked.
fn module_of(kernel: &Kernel, name: &str) -> Result<Vec<u8>> {
    let index = fs::read_to_string(kernel.modules.join("modules.dep"))?;
    let files = index.lines().filter_map(|line| line.split(':').next());
    let mut files = files.map(|file| kernel.modules.join(file));
    let is_it = |file: &PathBuf| {
        file.file_name()
            .is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}.ko")))
    };
    let file =
        files.find(is_it).with_context(|| format!("{} has no module {name}", kernel.name))?;
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => Ok(quietly(command("xz", ["-dc"]).arg(&file))?.stdout),
        Some("zst") => Ok(quietly(command("zstd", ["-dc"]).arg(&file))?.stdout),
        _ => Ok(fs::read(&file)?),
    }
}
