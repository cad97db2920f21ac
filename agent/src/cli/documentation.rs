//! `portcullis documentation`: what a package ships besides the binary.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::CommandFactory;
use clap_complete::Shell;

use super::{BAD_INPUT, Cli, OrExit, Outcome};

#[derive(clap::Args)]
pub struct Args {
    /// The folder; `man1` and `completions` are made in it
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes a manual page for each command, and completions for the shells.
pub fn documentation(args: &Args) -> Outcome {
    write(&args.folder).or_exit(BAD_INPUT)?;
    Ok(ExitCode::SUCCESS)
}

fn write(folder: &Path) -> std::io::Result<()> {
    let (pages, completions) = (folder.join("man1"), folder.join("completions"));
    fs::create_dir_all(&pages)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(Cli::command(), &pages)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Cli::command(), "portcullis", &completions)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path()).expect("written");
        let page = |name: &str| fs::read_to_string(folder.path().join("man1").join(name));
        assert!(page("portcullis.1").expect("there").contains("become code"), "it says what it is");
        assert!(page("portcullis-policy-push.1").expect("there").contains("confirm"));
        let completions = folder.path().join("completions/portcullis.bash");
        assert!(fs::read_to_string(completions).expect("there").contains("break-glass"));
    }
}
