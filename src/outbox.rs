//! A task's outputs: which channel each record takes, and control marks into all of them.
//!
//! The last stage of a chain that leads to other tasks. Records are written straight into the ring
//! slots of their channel and published once per batch.
//!
//! Invariants
//! - A record is taken from the batch only when every channel it may go to has a free slot, so the
//!   emission stops between two records and goes on there (trap 8).
//! - A control mark needs no record slot. It is put into each channel once, channel by channel,
//!   and a full channel does not keep the others from getting it (trap 9).

use std::sync::Arc;

use crate::channel::Producer;
use crate::config::BATCH_RECORDS;
use crate::error::Result;
use crate::flight::Flight;
use crate::id::KeyGroup;
use crate::key::Key;
use crate::operator::keyed::Select;
use crate::operator::{Flow, Output, Part, Probe, Stage, Visitor};
use crate::record::{Batch, Control, Drain};

/// Puts records into channels.
pub trait Route<T>: Send {
    /// Pushes every record of `records`; each producer has room for that many.
    fn route(&mut self, records: Drain<'_, T>, producers: &mut [Producer<T>]);

    /// How many channels each record goes into, of `channels`.
    fn copies(&self, _channels: usize) -> usize {
        1
    }
}

/// To the owner of the record's key group.
pub struct ByKey<S>(pub S);

impl<T: Send, S: Select<T>> Route<T> for ByKey<S> {
    #[inline]
    fn route(&mut self, records: Drain<'_, T>, producers: &mut [Producer<T>]) {
        if let [producer] = producers {
            producer.fill(records);
            return;
        }
        let parallelism = producers.len();
        for record in records {
            let hash = self.0.with(&record, Key::key_hash);
            producers[KeyGroup::of_hash(hash).owner(parallelism)].push(record);
        }
    }
}

/// To one task after the other.
#[derive(Default)]
pub struct RoundRobin(pub usize);

impl<T: Send> Route<T> for RoundRobin {
    fn route(&mut self, records: Drain<'_, T>, producers: &mut [Producer<T>]) {
        for record in records {
            self.0 = if self.0 + 1 >= producers.len() { 0 } else { self.0 + 1 };
            producers[self.0].push(record);
        }
    }
}

/// To every task.
pub struct ToAll;

impl<T: Clone + Send> Route<T> for ToAll {
    fn route(&mut self, records: Drain<'_, T>, producers: &mut [Producer<T>]) {
        let (last, rest) = producers.split_last_mut().expect("an edge has channels");
        for record in records {
            rest.iter_mut().for_each(|producer| producer.push(record.clone()));
            last.push(record);
        }
    }

    fn copies(&self, channels: usize) -> usize {
        channels
    }
}

/// The channels of one edge.
pub struct Outbox<T: Send> {
    route: Box<dyn Route<T>>,
    channels: Channels<T>,
    /// Of the loop that the edge lies inside.
    flight: Option<Arc<Flight>>,
}

impl<T: Send> Outbox<T> {
    /// Sends by `route` into `producers`, one per task of the receiving operator. Inside a loop
    /// what is sent is counted in `flight`.
    #[must_use]
    pub fn new(
        route: Box<dyn Route<T>>,
        producers: Vec<Producer<T>>,
        probe: Probe,
        flight: Option<Arc<Flight>>,
    ) -> Self {
        assert!(!producers.is_empty(), "an edge has channels");
        let given = vec![false; producers.len()];
        Self { route, channels: Channels { producers, given, probe }, flight }
    }
}

impl<T: Send> Stage<T> for Outbox<T> {
    fn process(&mut self, input: &mut Batch<'_, T>) -> Result<Flow> {
        let Channels { producers, probe, .. } = &mut self.channels;
        probe.enter();
        while !input.is_empty() {
            let wanted = input.len().min(BATCH_RECORDS);
            let room = producers.iter_mut().map(|p| p.room(wanted)).min().unwrap_or(0);
            if room == 0 {
                break;
            }
            let count = room.min(wanted);
            if let Some(flight) = &self.flight {
                flight.sent(count * self.route.copies(producers.len()));
            }
            self.route.route(input.drain(count), producers);
        }
        let mut sent = false;
        producers.iter_mut().for_each(|producer| sent |= producer.publish());
        if sent {
            probe.sent();
        }
        Ok(if input.is_empty() { Flow::Done } else { Flow::Full })
    }

    fn flush(&mut self) -> Result<Flow> {
        Ok(Flow::Done)
    }

    fn finish(&mut self) -> Result<Flow> {
        Ok(Flow::Done)
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) -> Result<()> {
        visitor(Part::Output(&mut self.channels))
    }
}

struct Channels<T: Send> {
    producers: Vec<Producer<T>>,
    /// Which channels already have the control that is being put.
    given: Vec<bool>,
    probe: Probe,
}

impl<T: Send> Output for Channels<T> {
    fn control(&mut self, control: Control) -> Flow {
        for (producer, given) in self.producers.iter_mut().zip(&mut self.given) {
            if !*given && producer.control(control).is_ok() {
                *given = true;
                self.probe.sent();
            }
        }
        if !self.given.iter().all(|&given| given) {
            return Flow::Full;
        }
        self.given.fill(false);
        Flow::Done
    }
}
