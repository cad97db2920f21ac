//! `portcullis scan`

use std::{
    fs,
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use indicatif::HumanBytes;
use portcullis_common::Kinds;

use super::{BAD_INPUT, Failure, OrExit, Outcome, UNAVAILABLE, output};
use crate::{
    policy::manifest,
    scan::{Report, scan as find},
};

#[derive(clap::Args)]
pub struct Args {
    /// Folders and files to look at; other filesystems below them are not entered
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The manifest to write, or - for standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// List every file as this kind too, whatever its content looks like: firmware, or kernels and
    /// their initramfs for kexec
    #[arg(long = "as", value_name = "KIND", value_parser = kind)]
    listed_as: Option<Kinds>,
}

/// A kind by its word.
pub(super) fn kind(word: &str) -> Result<Kinds, String> {
    let known = Kinds::WORDS.iter().filter(|(kind, _)| !Kinds::MARKS.intersects(*kind));
    known.clone().find(|(_, known)| *known == word).map(|(kind, _)| *kind).ok_or_else(|| {
        let words: Vec<_> = known.map(|(_, word)| *word).collect();
        format!("it can be {}", words.join(", "))
    })
}

pub fn scan(args: &Args) -> Outcome {
    let bar = output::progress(0, "files looked at:");
    let report = find(&args.paths, args.listed_as.unwrap_or_default(), &bar);
    bar.finish_and_clear();
    let mut report = report.or_exit(BAD_INPUT)?;
    let artifacts = std::mem::take(&mut report.artifacts);
    let summary = summary(&report, &artifacts);
    write(&args.output, artifacts)?;
    output::note(&summary);
    Ok(ExitCode::SUCCESS)
}

/// Writes the manifest whole or not at all.
fn write(path: &Path, artifacts: Vec<manifest::Found>) -> Result<(), Failure> {
    if path == Path::new("-") {
        let mut text = Vec::new();
        manifest::write(&mut text, artifacts, None).or_exit(UNAVAILABLE)?;
        let mut out = io::stdout().lock();
        return match out.write_all(&text).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.or_exit(UNAVAILABLE),
        };
    }
    let written = write_file(path, |out| manifest::write(out, artifacts, None));
    written.with_context(|| format!("cannot write {}", path.display())).or_exit(BAD_INPUT)
}

/// Writes a file beside its place and moves it there, unless the place is not one for that.
pub(super) fn write_file(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<&fs::File>) -> io::Result<()>,
) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let file = fs::OpenOptions::new().write(true).open(path)?;
        let mut out = BufWriter::new(&file);
        content(&mut out)?;
        return out.flush();
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    // Nothing in it is secret; the umask takes away what the user wants taken away.
    let file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder.unwrap_or(Path::new(".")))?;
    let mut out = BufWriter::new(file.as_file());
    content(&mut out)?;
    out.flush()?;
    drop(out);
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Lines of the summary that are shown of each sort.
const SHOWN: usize = 20;

fn summary(report: &Report, artifacts: &[manifest::Found]) -> String {
    let count = |kind: Kinds| artifacts.iter().filter(|found| found.kinds.intersects(kind)).count();
    let mut text = format!(
        "{} artifacts in {} files ({} hashed): {} executables, {} libraries, {} scripts, {} modules, {} firmware",
        artifacts.len(),
        report.files,
        HumanBytes(report.bytes),
        count(Kinds::EXECUTABLE),
        count(Kinds::LIBRARY),
        count(Kinds::SCRIPT),
        count(Kinds::MODULE),
        count(Kinds::FIRMWARE),
    );
    if !report.skipped.is_empty() {
        text.push_str(&format!("\n{} skipped, and not in the manifest:", report.skipped.len()));
        for (path, why) in report.skipped.iter().take(SHOWN) {
            text.push_str(&format!("\n  {}: {why}", path.display().to_string().escape_debug()));
        }
        if report.skipped.len() > SHOWN {
            text.push_str(&format!("\n  … and {} more", report.skipped.len() - SHOWN));
        }
    }
    if !report.not_entered.is_empty() {
        text.push_str(
            "\nother filesystems that were not entered; name them too if they hold programs:",
        );
        for path in report.not_entered.iter().take(SHOWN) {
            text.push_str(&format!("\n  {}", path.display().to_string().escape_debug()));
        }
    }
    text
}
