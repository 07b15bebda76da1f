//! Stateless operators: map, filter, flat_map, inspect. One stage serves them all: it differs only
//! in the loop that turns some records into others.

use std::marker::PhantomData;

use super::{Downstream, Flow, Probe, Stage, Visitor};
use crate::config::BATCH_RECORDS;
use crate::error::Result;
use crate::record::{Batch, Drain};

/// A stage without state. `apply` takes records from the drain and pushes what it makes of them;
/// it may stop before the drain is empty, what it has not taken comes again.
pub struct Transform<I, O, F> {
    apply: F,
    downstream: Downstream<O>,
    probe: Probe,
    input: PhantomData<fn(I)>,
}

impl<I, O, F> Transform<I, O, F>
where
    F: FnMut(&mut Drain<'_, I>, &mut Vec<O>),
{
    /// Applies `apply` and hands on to `next`.
    #[must_use]
    pub fn new(apply: F, next: Box<dyn Stage<O>>, probe: Probe) -> Self {
        Self { apply, downstream: Downstream::new(next), probe, input: PhantomData }
    }
}

impl<I, O, F> Stage<I> for Transform<I, O, F>
where
    I: Send,
    O: Send,
    F: FnMut(&mut Drain<'_, I>, &mut Vec<O>) + Send,
{
    fn process(&mut self, input: &mut Batch<'_, I>) -> Result<Flow> {
        loop {
            if self.downstream.flush()? == Flow::Full {
                return Ok(Flow::Full);
            }
            if input.is_empty() {
                return Ok(Flow::Done);
            }
            self.probe.enter();
            (self.apply)(&mut input.drain(BATCH_RECORDS), self.downstream.fill());
        }
    }

    fn flush(&mut self) -> Result<Flow> {
        self.downstream.flush()
    }

    fn finish(&mut self) -> Result<Flow> {
        self.downstream.finish()
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.downstream.visit(visitor)
    }
}

/// `flat_map`: takes one record at a time so that an expansion of any length goes on where a full
/// output, or the end of its step, stopped it.
pub struct FlatMap<I, E: IntoIterator, F> {
    expand: F,
    open: Option<E::IntoIter>,
    downstream: Downstream<E::Item>,
    probe: Probe,
    input: PhantomData<fn(I)>,
}

impl<I, E: IntoIterator, F: FnMut(I) -> E> FlatMap<I, E, F> {
    /// Expands each record with `expand` and hands on to `next`.
    #[must_use]
    pub fn new(expand: F, next: Box<dyn Stage<E::Item>>, probe: Probe) -> Self {
        Self { expand, open: None, downstream: Downstream::new(next), probe, input: PhantomData }
    }

    /// Fills the buffer from the open expansion and those of further records. How many it got.
    fn fill(&mut self, input: &mut Batch<'_, I>) -> usize {
        let out = self.downstream.fill();
        loop {
            if let Some(open) = &mut self.open {
                out.extend(open.take(BATCH_RECORDS - out.len()));
                if out.len() == BATCH_RECORDS {
                    return BATCH_RECORDS;
                }
                self.open = None;
            }
            let Some(record) = input.drain(1).next() else { return out.len() };
            self.open = Some((self.expand)(record).into_iter());
        }
    }
}

impl<I, E, F> Stage<I> for FlatMap<I, E, F>
where
    I: Send + 'static,
    E: IntoIterator<Item: Send, IntoIter: Send>,
    F: FnMut(I) -> E + Send,
{
    fn process(&mut self, input: &mut Batch<'_, I>) -> Result<Flow> {
        let mut pauses = false;
        loop {
            if self.downstream.flush()? == Flow::Full {
                return Ok(Flow::Full);
            }
            if input.is_empty() && self.open.is_none() {
                return Ok(Flow::Done);
            }
            if pauses {
                return Ok(Flow::Full);
            }
            self.probe.enter();
            let made = self.fill(input);
            pauses = self.probe.pauses_after(made);
        }
    }

    fn flush(&mut self) -> Result<Flow> {
        self.process(&mut Batch::empty())
    }

    fn finish(&mut self) -> Result<Flow> {
        match self.flush()? {
            Flow::Full => Ok(Flow::Full),
            Flow::Done => self.downstream.finish(),
        }
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        self.downstream.visit(visitor)
    }
}
