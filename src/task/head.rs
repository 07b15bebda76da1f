//! Where a task's records come from: the inputs of a chain, or a source.
//!
//! Each is one type that the task's state machine drives through [`Head`], whatever the type of its
//! records.

use std::collections::VecDeque;

use crate::config::SNAPSHOTS_PENDING_MAX;
use crate::error::Result;
use crate::id::SnapshotId;
use crate::inbox::{Inbox, Measured, Pulled};
use crate::operator::source::{SourceHead, SourcePull};
use crate::operator::{Flow, Part, Stage, Visitor};
use crate::record::Record;

/// Where a chain's records come from.
pub trait Head: Send {
    /// Reads some records into the chain.
    ///
    /// # Errors
    /// The chain's.
    fn pull(&mut self, now_ns: u64) -> Result<(Pulled, Option<u64>)>;

    /// Hands on what the chain owes.
    ///
    /// # Errors
    /// The chain's.
    fn flush(&mut self) -> Result<Flow>;

    /// Emits what is left.
    ///
    /// # Errors
    /// The chain's.
    fn finish(&mut self) -> Result<Flow>;

    /// Visits every part of the chain.
    ///
    /// # Errors
    /// The visitor's.
    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()>;

    /// The coordinator's barrier: a task without inputs takes it into the stream, and reads nothing
    /// more behind it if `pause`; a task with inputs is told that it will come, and since when it is
    /// waited for.
    fn inject(&mut self, _snapshot: SnapshotId, _pause: bool, _triggered_ns: u64) {}

    /// Every state is restored; records follow. Called before the worker runs.
    ///
    /// # Errors
    /// A source cannot be opened.
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    /// An output is full: empties the inputs that must not fill up meanwhile. Whether anything
    /// moved.
    ///
    /// # Errors
    /// A disk's; a loop that outgrows its bounds.
    fn relieve(&mut self, _now_ns: u64) -> Result<bool> {
        Ok(false)
    }

    /// When a task that stands still has to be stepped again, ns: a timed alignment is overdue then, or
    /// the disk may have got on with what its inputs set aside.
    fn look_at_ns(&self, _now_ns: u64) -> Option<u64> {
        None
    }

    /// From now on it is told how long steps take.
    fn time_steps(&mut self) {}

    /// The last step took this long, ns.
    fn took(&mut self, _ns: u64) {}

    /// What its inputs spilled and logged so far.
    fn measured(&self) -> Measured {
        Measured::default()
    }

    /// A snapshot for which a source waits is durable or given up.
    fn resume(&mut self, _snapshot: SnapshotId) {}
}

/// Head of a task with inputs.
pub struct InboxHead<T: Record> {
    /// Its inputs.
    pub inbox: Inbox<T>,
    /// Its chain.
    pub stage: Box<dyn Stage<T>>,
    /// Name of its log in snapshots.
    pub log: String,
}

impl<T: Record> Head for InboxHead<T> {
    fn pull(&mut self, now_ns: u64) -> Result<(Pulled, Option<u64>)> {
        self.inbox.pull(now_ns, &mut *self.stage)
    }

    fn flush(&mut self) -> Result<Flow> {
        let flow = self.stage.flush()?;
        if flow == Flow::Done {
            self.inbox.settle();
        }
        Ok(flow)
    }

    fn inject(&mut self, snapshot: SnapshotId, _pause: bool, triggered_ns: u64) {
        self.inbox.announce(snapshot, triggered_ns);
    }

    fn look_at_ns(&self, now_ns: u64) -> Option<u64> {
        self.inbox.look_at_ns(now_ns)
    }

    fn start(&mut self) -> Result<()> {
        self.inbox.start();
        Ok(())
    }

    fn relieve(&mut self, now_ns: u64) -> Result<bool> {
        self.inbox.relieve(now_ns)
    }

    fn time_steps(&mut self) {
        self.inbox.start_small();
    }

    fn took(&mut self, ns: u64) {
        self.inbox.took(ns);
    }

    fn measured(&self) -> Measured {
        self.inbox.measured()
    }

    fn finish(&mut self) -> Result<Flow> {
        self.stage.finish()
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.stage.visit(visitor)?;
        visitor(Part::State(&self.log, self.inbox.log()))
    }
}

/// Head of a source task: its only "input" is the coordinator's word.
pub struct SourceTask<T: Record> {
    head: SourceHead<T>,
    /// Barriers that are due. Those of snapshots that were given up meanwhile are among them.
    injected: VecDeque<(SnapshotId, bool)>,
    reading: Reading,
    waiting: Waiting,
    /// Up to here snapshots are durable or given up, perhaps before their barrier got here.
    resumed: SnapshotId,
}

/// Whether a source still reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// It does.
    On,
    /// The job is being stopped: it will not read on.
    Paused,
    /// Its input has come to its end.
    Ended,
}

/// What a source does behind a barrier until the snapshot is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// It reads on.
    Never,
    /// It would wait (a synchronous snapshot).
    No,
    /// It waits for this one.
    For(SnapshotId),
}

impl<T: Record> SourceTask<T> {
    /// The source and its chain. `synchronous`: behind a barrier it reads nothing until the
    /// snapshot is durable.
    #[must_use]
    pub fn new(head: SourceHead<T>, synchronous: bool) -> Self {
        let injected = VecDeque::with_capacity(SNAPSHOTS_PENDING_MAX);
        let waiting = if synchronous { Waiting::No } else { Waiting::Never };
        Self { head, injected, reading: Reading::On, waiting, resumed: SnapshotId(0) }
    }
}

impl<T: Record> Head for SourceTask<T> {
    fn pull(&mut self, now_ns: u64) -> Result<(Pulled, Option<u64>)> {
        if let Some((snapshot, pause)) = self.injected.pop_front() {
            if pause && self.reading == Reading::On {
                self.reading = Reading::Paused;
            }
            if self.waiting != Waiting::Never && snapshot > self.resumed {
                self.waiting = Waiting::For(snapshot);
            }
            return Ok((Pulled::Barrier(snapshot), None));
        }
        if self.reading != Reading::On || matches!(self.waiting, Waiting::For(_)) {
            return Ok((Pulled::Nothing, None));
        }
        Ok(match self.head.pull(now_ns)? {
            SourcePull::Worked => (Pulled::Worked, None),
            SourcePull::Full => (Pulled::Full, None),
            SourcePull::Idle(until) => (Pulled::Nothing, until),
            SourcePull::Ended => {
                self.reading = Reading::Ended;
                (Pulled::Ended, None)
            }
        })
    }

    fn start(&mut self) -> Result<()> {
        self.head.open()
    }

    fn flush(&mut self) -> Result<Flow> {
        self.head.flush()
    }

    fn finish(&mut self) -> Result<Flow> {
        self.head.finish()
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.head.visit(visitor)
    }

    fn inject(&mut self, snapshot: SnapshotId, pause: bool, _triggered_ns: u64) {
        self.injected.push_back((snapshot, pause));
    }

    fn resume(&mut self, snapshot: SnapshotId) {
        self.resumed = self.resumed.max(snapshot);
        if let Waiting::For(awaited) = self.waiting
            && awaited <= snapshot
        {
            self.waiting = Waiting::No;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::operator::source::{Items, ReaderContext};
    use crate::operator::{Downstream, Probe};
    use crate::record::Batch;

    struct Sink;

    impl Stage<u64> for Sink {
        fn process(&mut self, input: &mut Batch<'_, u64>) -> Result<Flow> {
            input.drain(usize::MAX).for_each(drop);
            Ok(Flow::Done)
        }

        fn flush(&mut self) -> Result<Flow> {
            Ok(Flow::Done)
        }

        fn finish(&mut self) -> Result<Flow> {
            Ok(Flow::Done)
        }

        fn visit(&mut self, _visitor: &mut Visitor<'_>) -> Result<()> {
            Ok(())
        }
    }

    /// It had taken the barrier into the stream when the snapshot was given up long before, and waited for
    /// one of which nothing more would be heard.
    #[test]
    fn a_synchronous_source_does_not_wait_for_a_snapshot_that_is_given_up_whenever_it_hears_of_that()
     {
        let source = std::sync::Arc::new(Items::new("numbers", || 0..1_u64 << 40));
        let context = ReaderContext { disk: std::sync::Arc::new(MemoryDisk::new(1)) };
        let probe = Probe::new(std::sync::Arc::default(), 0);
        let chain = (Downstream::new(Box::new(Sink)), probe);
        let pace = (None, std::sync::Arc::default());
        let head = SourceHead::new("numbers".into(), source, (0, 1), pace, context, chain);
        let mut task = SourceTask::new(head, true);
        task.start().unwrap();
        let pull = |task: &mut SourceTask<u64>| task.pull(0).unwrap().0;
        assert_eq!(pull(&mut task), Pulled::Worked);
        for before in [true, false] {
            let snapshot = SnapshotId(1 + u64::from(!before));
            task.inject(snapshot, false, 0);
            if before {
                task.resume(snapshot);
            }
            assert_eq!(pull(&mut task), Pulled::Barrier(snapshot));
            if !before {
                assert_eq!(pull(&mut task), Pulled::Nothing, "it waits");
                task.resume(snapshot);
            }
            assert_eq!(pull(&mut task), Pulled::Worked, "given up before its barrier: {before}");
        }
    }
}
