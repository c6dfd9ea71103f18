//! What is being checked, and how long each step took.

use std::time::Instant;

/// Says each step before it begins, so that a failure is below its name.
pub struct Story {
    began: Instant,
    step: Instant,
    steps: usize,
}

impl Default for Story {
    fn default() -> Self {
        Self { began: Instant::now(), step: Instant::now(), steps: 0 }
    }
}

impl Story {
    /// The next step begins.
    pub fn step(&mut self, what: &str) {
        self.done();
        self.steps += 1;
        println!("{:3}. {what}", self.steps);
        self.step = Instant::now();
    }

    /// Something worth knowing of the step.
    #[expect(clippy::unused_self, reason = "it belongs to a step")]
    pub fn note(&self, what: &str) {
        println!("       {what}");
    }

    fn done(&self) {
        if self.steps > 0 {
            println!("       {:.1} s", self.step.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("       FAILED in step {}", self.steps);
        } else {
            self.done();
            println!("     {} steps in {:.0} s", self.steps, self.began.elapsed().as_secs_f64());
        }
    }
}
