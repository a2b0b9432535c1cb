//! A disk that is full, and has room again. It takes the right to mount.
#![allow(unsafe_code)] // a mount namespace of the test's own

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::thread;
use std::time::Duration;

use nvme_vfio_queues::Status;

use super::flood::accounted;
use super::*;

/// Mounts a file system of a mebibyte that only this thread sees.
fn mount_small(at: &Path) -> io::Result<()> {
    let at = CString::new(at.as_os_str().as_bytes())?;
    let done = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: all pointers are null or lead to strings that end with a zero and outlive the calls, which touch no other memory of this process.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS))?;
        done(libc::mount(
            c"none".as_ptr(),
            c"/".as_ptr(),
            ptr::null(),
            private,
            ptr::null(),
        ))?;
        done(libc::mount(
            c"none".as_ptr(),
            at.as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            c"size=1m".as_ptr().cast(),
        ))
    }
}

#[test]
fn a_disk_that_was_full_gets_whole_lines_again_and_what_was_missed_is_told() {
    // The file system goes with the thread.
    thread::spawn(|| {
        let folder = crate::scratch::folder();
        if let Err(error) = mount_small(folder.path()) {
            eprintln!("skipped, nothing can be mounted here: {error}");
            return;
        }
        let path = folder.path().join("audit.jsonl");
        let options = AuditOptions {
            ring: 1 << 16,
            sample_allowed_io: 1,
            ..AuditOptions::default()
        };
        let auditor = Auditor::start(open(&path).unwrap(), options).unwrap();
        let filler = folder.path().join("filler");
        // Room for some lines is left.
        fs::write(&filler, vec![0; 960 << 10]).unwrap();
        let mut client = client(&auditor, 0, "a");
        let mut sent = 0;
        let mut send = |count| {
            for _ in 0..count {
                let started = read_once(&mut client).unwrap();
                client.end(started, Status::SUCCESS, Instant::now());
            }
            sent += count;
            sent
        };
        let until = Instant::now() + PATIENCE;
        while !auditor.is_failing() {
            assert!(Instant::now() < until, "the disk is not full");
            send(50);
            thread::sleep(Duration::from_millis(5));
        }
        send(5000);
        fs::remove_file(&filler).unwrap();
        while auditor.is_failing() {
            assert!(Instant::now() < until, "it is not tried again");
            thread::sleep(Duration::from_millis(5));
        }
        let lines = || -> Vec<Value> {
            let text = fs::read_to_string(&path).unwrap();
            // The last line may not be whole yet.
            let line = |line: &str| serde_json::from_str(line).ok();
            text.lines().filter_map(line).collect()
        };
        let last = until_written(|| send(1) - 1, lines);
        auditor.finish().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        for (index, line) in lines.iter().enumerate() {
            assert_eq!(line["seq"], index, "{line}");
        }
        let (written, dropped) = accounted(&lines, "a", "commands");
        assert_eq!(written.len() as u64 + dropped, last + 1);
        assert!(dropped > 4000, "{dropped}");
    })
    .join()
    .unwrap();
}
