//! The reading process: gives everything away, reads what it is given to the end, and says how that was.

use std::{
    borrow::Cow,
    cell::RefCell,
    ffi::OsStr,
    fmt,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;

use super::{
    blocks::{InBlocks, Source},
    words::{Given, Task, Word, hear, say},
};
use crate::{
    alone::alone,
    catalog::{self, folder::Form as Beside, parcel},
    policy::{
        Policy,
        break_glass::Token,
        bundle::{Bundle, Form, Head, POLICY},
        diagnostic::Diagnostic,
        files::{Files, InBundle},
        trust::{PolicyTrust, Why},
    },
    trust::{Anchor, Certificate, Requirements, Signer, Slot, Trust, cms, raw},
};

/// The reason of mistakes in a policy, which are shown as they are.
pub const MISTAKES: &str = "mistakes";

/// Bytes of a message: mistakes in a policy come by the hundred.
const MAX_MESSAGE: usize = 32 << 10;

/// Does all of it, with the agent at the first descriptor.
///
/// # Errors
/// If something cannot be taken from this process, before it reads anything; or the agent is gone.
pub fn run() -> io::Result<()> {
    let how = alone().map_err(io::Error::other)?.to_string();
    let stdin = io::stdin();
    let agent = Agent(RefCell::new(Socket(stdin.as_fd())));
    agent.say(&Word::Alone { how })?;
    let task = hear(&mut *agent.0.borrow_mut())?;
    let word = match agent.read(&task) {
        Ok(()) => Word::Read,
        Err((reason, mut message)) => {
            let end =
                (0..=MAX_MESSAGE.min(message.len())).rfind(|end| message.is_char_boundary(*end));
            message.truncate(end.unwrap_or_default());
            Word::Refused { reason: reason.into(), message }
        }
    };
    agent.say(&word)
}

/// A descriptor that the process was started with.
struct Socket<'a>(BorrowedFd<'a>);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0, buffer)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The agent, who gives what it is asked for.
struct Agent<'a>(RefCell<Socket<'a>>);

fn unreadable(error: impl fmt::Display) -> Why {
    ("unreadable", error.to_string())
}

impl Agent<'_> {
    fn say(&self, word: &Word) -> io::Result<()> {
        say(&mut *self.0.borrow_mut(), word)
    }

    fn ask(&self, word: &Word) -> io::Result<(Given, Vec<u8>)> {
        let mut socket = self.0.borrow_mut();
        say(&mut *socket, word)?;
        let given = hear(&mut *socket)?;
        let mut bytes = Vec::new();
        if let Given::Bytes(length) = given {
            let taken = (&mut *socket).take(length).read_to_end(&mut bytes)?;
            if taken as u64 != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok((given, bytes))
    }

    /// A piece of what is to be read; none if there is none of that name.
    fn piece(&self, name: &str) -> Result<Option<Vec<u8>>, Why> {
        match self.ask(&Word::Give { name: name.into() }).map_err(unreadable)? {
            (Given::Bytes(_), bytes) => Ok(Some(bytes)),
            (Given::Nothing, _) => Ok(None),
            (Given::Cannot(message, _), _) => Err(unreadable(message)),
        }
    }

    fn needed(&self, name: &str) -> Result<Vec<u8>, Why> {
        self.piece(name)?.ok_or_else(|| unreadable(format!("the agent gives no {name}")))
    }

    fn read(&self, task: &Task) -> Result<(), Why> {
        match task {
            Task::Policy { file } => policy_from(self, Path::new(OsStr::from_bytes(file))),
            Task::BundleHead { length } => self.head(*length),
            Task::Bundle => self.bundle(),
            Task::Document { file, is_rotation } => {
                self.document(Path::new(OsStr::from_bytes(file)), *is_rotation)
            }
            Task::Parcel => self.parcel(),
            Task::Token => {
                let token = Token::parse(&self.needed("token")?)?;
                let signed = token.claim.signed_bytes();
                self.try_signatures(&signed, token.each_signature())
            }
        }
    }

    fn head(&self, length: u64) -> Result<(), Why> {
        let head = Head::parse(InBlocks::of(Asked { agent: self, last: None }, length), length)?;
        self.try_signatures(head.signed_bytes(), head.each_signature())
    }

    fn bundle(&self) -> Result<(), Why> {
        let bundle = Bundle::parse(self.needed("bundle")?)?;
        self.try_signatures(bundle.signed_bytes(), bundle.each_signature())?;
        let files = InBundle { bundle: &bundle, folder: PathBuf::new() };
        policy_from(&files, Path::new(POLICY))
    }

    fn document(&self, file: &Path, is_rotation: bool) -> Result<(), Why> {
        let text = match self.piece("p7m")? {
            None => self.needed("text")?,
            Some(message) => {
                let _ = cms::verify(&self.anchors()?, None, &message, None);
                // Whoever signed it: that is not for this process to say.
                cms::content_of(&message).unwrap_or_default()
            }
        };
        let mut signatures = Vec::new();
        for (name, form) in [("p7s", Form::Cms), ("sig", Form::Raw)] {
            signatures.extend(self.piece(name)?.map(|bytes| (form, bytes)));
        }
        self.try_signatures(&text, signatures.iter().map(|(form, bytes)| (*form, &bytes[..])))?;
        if is_rotation {
            let (_, new) = PolicyTrust::rotated(&text)?;
            return Anchor::read(new.as_bytes())
                .map(drop)
                .map_err(|error| ("malformed", error.to_string()));
        }
        catalog::read_text(file, &text)
    }

    fn parcel(&self) -> Result<(), Why> {
        let bytes = self.needed("parcel")?;
        let parcel::Parts { text, signatures } = parcel::split(&bytes)?;
        let signatures = signatures.into_iter();
        let forms = signatures.map(|(form, bytes)| (Form::of(form == Beside::Detached), bytes));
        self.try_signatures(text, forms)?;
        // As the agent calls it.
        catalog::read_text(Path::new("catalog"), text)
    }

    /// Does with signatures what the agent will do, whatever comes out: who may sign what is not known here.
    fn try_signatures<'s>(
        &self,
        content: &[u8],
        signatures: impl Iterator<Item = (Form, &'s [u8])>,
    ) -> Result<(), Why> {
        let trust = self.anchors()?;
        for (form, signature) in signatures {
            let _ = match form {
                Form::Cms => cms::verify(&trust, Some(content), signature, None).map(drop),
                Form::Raw => raw::verify(&trust, content, signature, None).map(drop),
            };
        }
        Ok(())
    }

    /// The certificates that lead to trust, to build chains with.
    fn anchors(&self) -> Result<Trust, Why> {
        let mut trust = Trust::default();
        for number in 0.. {
            let Some(der) = self.piece(&format!("anchor {number}"))? else { break };
            let anchor = Certificate::from_der(&der).ok();
            let Some(anchor) = anchor.and_then(|one| Anchor::certificate(one).ok()) else {
                continue;
            };
            trust.signers.push(Signer {
                name: number.to_string(),
                slot: Slot::Operator,
                kinds: portcullis_common::Kinds::NONE,
                anchor,
                valid_from: None,
                valid_until: None,
                requirements: Requirements::default(),
            });
        }
        Ok(trust)
    }
}

fn policy_from(files: &dyn Files, file: &Path) -> Result<(), Why> {
    let read = Policy::load_from(files, file, &ProgressBar::hidden());
    read.map(drop).map_err(|mistakes| (MISTAKES, mistakes.to_string()))
}

impl Files for Agent<'_> {
    fn read(&self, file: &Path) -> Result<Cow<'_, [u8]>, Diagnostic> {
        let fail = |what| Diagnostic::whole_file(file, what);
        let asked = self.ask(&Word::Give { name: file.as_os_str().as_bytes().to_vec() });
        match asked.map_err(|error| fail(error.to_string()))? {
            (Given::Bytes(_), bytes) => Ok(bytes.into()),
            (Given::Nothing, _) => Err(fail("is not given".into())),
            (Given::Cannot(message, help), _) => Err(fail(message).with_optional_help(help)),
        }
    }
}

/// Blocks that the agent is asked for, of which the last is kept.
struct Asked<'a, 'b> {
    agent: &'a Agent<'b>,
    last: Option<(u64, Vec<u8>)>,
}

impl Source for Asked<'_, '_> {
    fn block(&mut self, number: u64) -> io::Result<&[u8]> {
        let known = self.last.take().filter(|(known, _)| *known == number);
        let (_, block) = match known {
            Some(known) => self.last.insert(known),
            None => match self.agent.ask(&Word::Block { number })? {
                (Given::Bytes(_), bytes) => self.last.insert((number, bytes)),
                _ => return Err(io::ErrorKind::NotFound.into()),
            },
        };
        Ok(block)
    }
}
