//! A FUSE filesystem that lies: one file, which shows a listed program to everybody who reads it,
//! and to the check at its start, and the attacker's program to the processor.

use std::{
    ffi::{CString, OsStr},
    fs::OpenOptions,
    os::fd::AsRawFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry,
    ReplyOpen, Request, Session, SessionACL,
};
use rustix::mount::{MountFlags, mount};

/// Name of the one file.
const NAME: &str = "program";
const FILE: INodeNo = INodeNo(2);
/// What the kernel hashes at once, and pages in at once.
const PAGE: u32 = 4096;
const FOREVER: Duration = Duration::from_secs(3600);

/// The filesystem while it is mounted.
pub struct TwoFaced {
    session: BackgroundSession,
    checks: Arc<AtomicUsize>,
}

impl TwoFaced {
    /// Mounts it as `fuse.SUBTYPE`. Both programs have one size, of at most a page, and differ
    /// behind their headers only.
    pub fn mount(at: &Path, subtype: &str, good: &[u8], evil: &[u8]) -> Result<Self> {
        let (server, checks) = Server::new(good, evil)?;
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::FSName("lies".into()), MountOption::Subtype(subtype.into())];
        let session = fuser::spawn_mount(server, at, &config).context("mounting by FUSE")?;
        Ok(Self { session, checks })
    }

    /// Mounts it as `fuseblk`, which says that it lies on a block device, and never reads that.
    pub fn mount_on(device: &Path, at: &Path, good: &[u8], evil: &[u8]) -> Result<Self> {
        let (server, checks) = Server::new(good, evil)?;
        let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,blksize=4096", fuse.as_raw_fd());
        mount(device, at, "fuseblk", MountFlags::RDONLY, Some(&*CString::new(options)?))
            .context("mounting by FUSE on a device")?;
        let session = Session::from_fd(server, fuse.into(), SessionACL::Owner, Config::default())
            .and_then(Session::spawn)?;
        Ok(Self { session, checks })
    }

    /// Has the next `count` reads of a page be answered with the listed program.
    pub fn expect_checks(&self, count: usize) {
        self.checks.store(count, Ordering::SeqCst);
    }

    /// Unmounts it.
    pub fn unmount(self) -> Result<()> {
        Ok(self.session.umount_and_join()?)
    }
}

struct Server {
    good: Vec<u8>,
    evil: Vec<u8>,
    /// How many reads of a page are still to come that check.
    checks: Arc<AtomicUsize>,
}

impl Server {
    fn new(good: &[u8], evil: &[u8]) -> Result<(Self, Arc<AtomicUsize>)> {
        ensure!(good.len() == evil.len() && good.len() < PAGE as usize);
        let checks = Arc::<AtomicUsize>::default();
        let (good, evil) = (good.to_owned(), evil.to_owned());
        Ok((Self { good, evil, checks: Arc::clone(&checks) }, checks))
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_file = inode == FILE;
        FileAttr {
            ino: inode,
            size: if is_file { self.good.len() as u64 } else { 0 },
            blocks: 1,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&FOREVER, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Past the page cache, so that what was hashed is not what is paged in.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // People read with larger buffers, and exec looks at the headers with smaller ones.
        let spend = |count: usize| count.checked_sub(1);
        let is_checked = size != PAGE
            || self.checks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend).is_ok();
        let content = if is_checked { &self.good } else { &self.evil };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        let end = start.saturating_add(size as usize).min(content.len());
        reply.data(&content[start..end]);
    }
}
