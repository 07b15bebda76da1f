//! One stream into several: `split` routes each record to one of two outputs of their own types,
//! and a stream used twice is copied.

use rkyv::{Archive, Deserialize, Serialize};

use super::{Downstream, Flow, Probe, Stage, Visitor};
use crate::config::BATCH_RECORDS;
use crate::error::Result;
use crate::record::Batch;

/// Where `split` sends what it makes of a record. A record itself, so that an operator may emit it.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side<L, R> {
    /// To the first stream.
    Left(L),
    /// To the second stream (the side output).
    Right(R),
}

/// The stage of `split`.
pub struct Split<L, R, F> {
    route: F,
    left: Downstream<L>,
    right: Downstream<R>,
    probe: Probe,
    finished: usize,
}

impl<L, R, F> Split<L, R, F> {
    /// Routes with `route`.
    #[must_use]
    pub fn new(route: F, left: Box<dyn Stage<L>>, right: Box<dyn Stage<R>>, probe: Probe) -> Self {
        Self {
            route,
            left: Downstream::new(left),
            right: Downstream::new(right),
            probe,
            finished: 0,
        }
    }
}

/// Both, or `Full` if either is. Neither waits for the other (trap 9: a full branch must not keep
/// its sibling from getting what it is owed).
fn both(left: Flow, right: Flow) -> Flow {
    if left == Flow::Done { right } else { left }
}

impl<I, L, R, F> Stage<I> for Split<L, R, F>
where
    L: Send,
    R: Send,
    F: FnMut(I) -> Side<L, R> + Send,
{
    fn process(&mut self, input: &mut Batch<'_, I>) -> Result<Flow> {
        loop {
            if both(self.left.flush()?, self.right.flush()?) == Flow::Full {
                return Ok(Flow::Full);
            }
            if input.is_empty() {
                return Ok(Flow::Done);
            }
            self.probe.enter();
            let (left, right) = (self.left.fill(), self.right.fill());
            for record in input.drain(BATCH_RECORDS) {
                match (self.route)(record) {
                    Side::Left(record) => left.push(record),
                    Side::Right(record) => right.push(record),
                }
            }
        }
    }

    fn flush(&mut self) -> Result<Flow> {
        Ok(both(self.left.flush()?, self.right.flush()?))
    }

    fn finish(&mut self) -> Result<Flow> {
        if self.finished == 0 {
            if self.left.finish()? == Flow::Full {
                return Ok(Flow::Full);
            }
            self.finished = 1;
        }
        self.right.finish()
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.left.visit(visitor)?;
        self.right.visit(visitor)
    }
}

/// Copies every record to several successors.
pub struct Tee<T> {
    branches: Vec<Downstream<T>>,
    finished: usize,
}

impl<T> Tee<T> {
    /// Copies to each of `branches`.
    #[must_use]
    pub fn new(branches: Vec<Box<dyn Stage<T>>>) -> Self {
        Self { branches: branches.into_iter().map(Downstream::new).collect(), finished: 0 }
    }
}

impl<T: Clone + Send> Stage<T> for Tee<T> {
    fn process(&mut self, input: &mut Batch<'_, T>) -> Result<Flow> {
        loop {
            if self.flush()? == Flow::Full {
                return Ok(Flow::Full);
            }
            if input.is_empty() {
                return Ok(Flow::Done);
            }
            let (last, copies) = self.branches.split_last_mut().expect("a tee has branches");
            let count = input.len().min(BATCH_RECORDS);
            for branch in copies {
                branch.fill().extend_from_slice(&input.as_slice()[..count]);
            }
            last.fill().extend(input.drain(count));
        }
    }

    fn flush(&mut self) -> Result<Flow> {
        let mut flow = Flow::Done;
        for branch in &mut self.branches {
            flow = both(flow, branch.flush()?);
        }
        Ok(flow)
    }

    fn finish(&mut self) -> Result<Flow> {
        while let Some(branch) = self.branches.get_mut(self.finished) {
            if branch.finish()? == Flow::Full {
                return Ok(Flow::Full);
            }
            self.finished += 1;
        }
        Ok(Flow::Done)
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.branches.iter_mut().try_for_each(|branch| branch.visit(visitor))
    }
}
