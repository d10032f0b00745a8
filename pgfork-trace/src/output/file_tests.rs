//! Tests of creating the file and of writing lines to what fails.

use std::{
    os::unix::fs::{PermissionsExt, symlink},
    sync::{Arc, Mutex},
};

use super::*;

#[test]
fn file_is_new_and_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.json");
    let mut file = create(&path).unwrap();
    assert_eq!(file.append(b"x\n").unwrap(), 2);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read(&path).unwrap(), b"x\n");
}

#[test]
fn existing_files_and_links_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "kept").unwrap();
    for name in ["link", "dangling"] {
        let target = if name == "link" { "file" } else { "nowhere" };
        let link = directory.path().join(name);
        symlink(target, &link).unwrap();
        let error = create(&link).unwrap_err();
        assert!(matches!(error, OpenError::Symlink(_)), "{error}");
        assert!(error.to_string().contains("symbolic link"));
    }
    let error = create(&file).unwrap_err();
    assert!(matches!(error, OpenError::Exists(_)), "{error}");
    assert!(error.to_string().contains("choose another name"));
    assert_eq!(fs::read(&file).unwrap(), b"kept");
    assert!(!directory.path().join("nowhere").exists());
    for path in [directory.path(), Path::new("/dev/full")] {
        assert!(matches!(create(path), Err(OpenError::Exists(_))));
    }
    let error = create(&directory.path().join("none/file")).unwrap_err();
    assert!(matches!(error, OpenError::Other { .. }), "{error}");
}

type Shared<T> = Arc<Mutex<T>>;

#[test]
fn only_the_own_empty_file_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    let mut file = create(&path).unwrap();
    let created = identity(&file.metadata().unwrap());
    remove_empty(&path, (created.0, created.1 + 1));
    assert!(path.exists());
    file.append(b"x").unwrap();
    remove_empty(&path, created);
    assert!(path.exists());
    file.take_back(1).unwrap();
    remove_empty(&path, created);
    assert!(!path.exists());
}

/// A store that holds so many bytes, and takes at most three at once.
struct Small {
    bytes: Shared<Vec<u8>>,
    room: Shared<usize>,
    can_take_back: bool,
    interrupted: bool,
}

impl Store for Small {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let mut held = self.bytes.lock().unwrap();
        let taken = (*self.room.lock().unwrap() - held.len())
            .min(bytes.len())
            .min(3);
        if taken == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        held.extend(&bytes[..taken]);
        Ok(taken)
    }

    fn take_back(&mut self, bytes: u64) -> io::Result<()> {
        if !self.can_take_back {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut held = self.bytes.lock().unwrap();
        let length = held.len() - usize::try_from(bytes).unwrap();
        held.truncate(length);
        Ok(())
    }
}

fn small(can_take_back: bool) -> (LineWriter, Shared<Vec<u8>>, Shared<usize>) {
    let (bytes, room) = (Arc::default(), Arc::new(Mutex::new(12)));
    let store = Small {
        bytes: Arc::clone(&bytes),
        room: Arc::clone(&room),
        can_take_back,
        interrupted: false,
    };
    (LineWriter::new(Box::new(store)), bytes, room)
}

#[test]
fn part_of_a_line_is_taken_back() {
    let (mut writer, bytes, room) = small(true);
    writer.write(b"first\n").unwrap();
    let error = writer.write(b"second line\n").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(*bytes.lock().unwrap(), b"first\n");
    assert_eq!(
        (writer.written(), writer.missing(), writer.unwritten()),
        (6, 1, 1)
    );
    *room.lock().unwrap() = 100;
    writer.write_notice(b"1 missing\n");
    writer.write(b"third\n").unwrap();
    assert_eq!(*bytes.lock().unwrap(), b"first\n1 missing\nthird\n");
    assert_eq!((writer.missing(), writer.unwritten()), (0, 1));
}

#[test]
fn part_of_a_line_that_stays_is_ended() {
    let (mut writer, bytes, room) = small(false);
    writer.write(b"first\n").unwrap();
    writer.write(b"second line\n").unwrap_err();
    writer.write(b"third\n").unwrap_err();
    assert_eq!(*bytes.lock().unwrap(), b"first\nsecond");
    *room.lock().unwrap() = 100;
    writer.write(b"fourth\n").unwrap();
    assert_eq!(*bytes.lock().unwrap(), b"first\nsecond\nfourth\n");
    assert_eq!(writer.unwritten(), 2);
    assert_eq!(writer.written(), 20);
}

#[test]
fn real_file_is_cut_back_to_its_last_whole_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    let mut file = create(&path).unwrap();
    file.append(b"one\ntw").unwrap();
    file.take_back(2).unwrap();
    file.append(b"three\n").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"one\nthree\n");
}
