//! Threads that commit while the supervisor goes on.
//!
//! One for each commit that is under way at once; they are started when they are needed, and stay.
//!
//! Invariants
//! - What was given is written, and its end is told, once.
//! - Dropped, they have ended: nothing is written any more.

#![expect(clippy::disallowed_methods, reason = "the engine is the one home of threads")]

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::clock;
use crate::disk::ShortSlice;
use crate::store::Commit;
use crate::worker::Event;

/// See the module's documentation.
pub struct Committers {
    commits: Sender<Commit>,
    waiting: Arc<Mutex<Receiver<Commit>>>,
    threads: Vec<JoinHandle<()>>,
    events: Sender<Event>,
}

impl Committers {
    /// None yet. They tell `events` what came of each commit.
    pub fn new(events: Sender<Event>) -> Self {
        let (commits, waiting) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        Self { commits, waiting, threads: Vec::new(), events }
    }

    /// Sees to it that there are so many.
    ///
    /// # Errors
    /// The system starts no more.
    pub fn grow(&mut self, threads: usize) -> io::Result<()> {
        while self.threads.len() < threads {
            let (waiting, events) = (self.waiting.clone(), self.events.clone());
            let thread = std::thread::Builder::new().name("tidegate-commit".into());
            self.threads.push(thread.spawn(move || run(&waiting, &events))?);
        }
        Ok(())
    }

    /// Has one of them write this. There must be one.
    pub fn give(&self, commit: Commit) {
        assert!(!self.threads.is_empty(), "a commit that nobody takes");
        self.commits.send(commit).expect("the other end is held here");
    }

    /// Waits until all that was given is written, and ends them.
    pub fn stop(&mut self) {
        let waiting;
        // With their sender gone the threads end when nothing is left.
        (self.commits, waiting) = channel();
        self.threads.drain(..).for_each(|thread| _ = thread.join());
        self.waiting = Arc::new(Mutex::new(waiting));
    }
}

fn run(waiting: &Mutex<Receiver<Commit>>, events: &Sender<Event>) {
    let _short = ShortSlice::wish();
    loop {
        // Whoever waits holds the lock, and the others wait for that: each commit goes to one.
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(commit) = next else { return };
        let began_ns = clock::now_ns();
        let committed = commit.run();
        let took_ns = clock::now_ns() - began_ns;
        // A supervisor that is gone has given the job up.
        _ = events.send(Event::Committed { committed, took_ns });
    }
}

impl Drop for Committers {
    fn drop(&mut self) {
        self.stop();
    }
}
