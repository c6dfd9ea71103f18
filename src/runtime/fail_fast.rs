//! A process whose code has panicked ends.
//!
//! Our locks are not poisoned, and tasks panic alone. So without this, a panic in the middle of a change would leave half of it
//! behind for others to go on from: a replica that has taken in an object and evicted nobody would vouch for old copies for ever
//! (I1). And a task that nobody waits for would be missed by nobody. A process that has ended holds no lease and grants none, and is
//! started anew.

use std::panic;
use std::process;

/// What Rust's own main thread ends with.
const PANICKED: i32 = 101;

/// From now on a panic of any thread ends the process, after it was told as it was before. Nothing is unwound, so no lock is
/// released that was held. For programs: what is to become of a process is not for a library to say.
#[expect(clippy::disallowed_methods, reason = "destructors are what must not run")]
pub fn install() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        tell(panic);
        // No abort: that may leave a file with all memory in it, and so with the values (I6).
        process::exit(PANICKED);
    }));
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;

    /// Set for the process in which it is tried.
    const TRIED: &str = "VMCP_TEST_FAIL_FAST";

    #[test]
    fn a_panic_of_any_thread_ends_the_process_before_anything_is_unwound() {
        struct Unwound;
        impl Drop for Unwound {
            fn drop(&mut self) {
                println!("unwound");
            }
        }
        if std::env::var_os(TRIED).is_some() {
            install();
            let thread = thread::spawn(|| {
                let _unwound = Unwound;
                panic!("half done");
            });
            println!("goes on: {}", thread.join().is_err());
            return;
        }
        let name = thread::current().name().unwrap().to_owned();
        let mut tried = Command::new(std::env::current_exe().unwrap());
        let ended = tried.args(["--exact", &name, "--nocapture"]).env(TRIED, "1").output().unwrap();
        let (said, told) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert_eq!(ended.status.code(), Some(PANICKED), "{said}{told}");
        assert!(told.contains("half done") && !said.contains("unwound") && !said.contains("goes on"), "{said}{told}");
    }
}
