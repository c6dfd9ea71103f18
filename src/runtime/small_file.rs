//! Reading a file that others write, and that is small if it is what it should be: a token, a certificate, a password.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// What is in the file. One that is longer than `most` bytes is not read to its end, and is an error of the kind
/// [`ErrorKind::FileTooLarge`].
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// The same, for tasks: a file system may let one wait.
pub async fn load(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || read(&path, most)).await.unwrap_or_else(|lost| Err(io::Error::other(lost)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_longer_than_it_can_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(load(&path, 3).await.unwrap_err().kind(), ErrorKind::NotFound);
        for (content, expected) in [("", Ok("")), ("abc", Ok("abc")), ("abcd", Err(ErrorKind::FileTooLarge))] {
            std::fs::write(&path, content).unwrap();
            let got = load(&path, 3).await.map_err(|error| error.kind());
            assert_eq!(got, expected.map(|text| text.as_bytes().to_vec()), "{content}");
        }
    }

    #[test]
    fn a_file_without_an_end_is_not_read_to_its_end() {
        assert_eq!(read(Path::new("/dev/zero"), 1 << 20).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }
}
