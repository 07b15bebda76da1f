//! Logging late inputs, and setting records aside: what happens to records that the stage is not
//! given yet. Which and why is said in [`super`].

use std::mem::needs_drop;

use super::{Inbox, Input, fault};
use crate::align::{Arrival, InputKind, Verdict};
use crate::channel::Polled;
use crate::config::{BATCH_RECORDS, INPUT_RECORDS_MAX};
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::inbox::Pulled;
use crate::record::{Control, Record};

impl<T: Record> Inbox<T> {
    /// The trigger has come: what late inputs have had set aside is in transit.
    pub(super) fn begin_log(&mut self, snapshot: SnapshotId) -> Result<()> {
        self.setting.flight.iter().for_each(|flight| flight.captured(snapshot));
        self.timed.captured(snapshot);
        self.seal(); // a trigger means that the snapshot before is sealed
        if !self.aligner.is_logging() {
            return Ok(());
        }
        self.log.begin(snapshot);
        for input in 0..self.inputs.len() {
            if !self.aligner.is_late(input) {
                continue;
            }
            self.inputs[input].unlogged = true;
            if self.log_backlog(input) {
                let barrier = Arrival::Control(Control::Barrier(snapshot));
                let admitted = self.aligner.admit(input, barrier);
                let verdict = admitted.map_err(|error| fault(&self.setting, &error))?;
                if let Verdict::Sealed(_) = verdict {
                    self.seal();
                }
            }
        }
        Ok(())
    }

    /// Copies what a late input has set aside to the log, unless part of it is on disk: then it stays
    /// `unlogged`, and is copied as it comes back. Whether the barrier was in it; it is taken out.
    fn log_backlog(&mut self, input: usize) -> bool {
        let snapshot = self.aligner.captured();
        let Input { backlog, unlogged, .. } = &mut self.inputs[input];
        *unlogged = !backlog.is_in_memory();
        let log = &mut self.log;
        !*unlogged
            && backlog.before(snapshot, &mut |records| log.append(input, records))
            && backlog.remove_barrier(snapshot)
    }

    pub(super) fn seal(&mut self) {
        self.log.seal();
        // After a log that was too long, the next snapshot waits for its alignment.
        self.timed.sealed(self.log.failed(), self.aligner.captured().next());
    }

    /// Looks for the barrier of a late input. If it is in the ring, what stands before it is copied
    /// to the log where it is, the barrier is taken off, and the input has delivered: no slow stage is
    /// waited for, neither by this snapshot nor, for lack of room for its mark, by a later one. If it is
    /// not there and the ring is full, its sender may be stuck before it, and gets some room.
    pub(super) fn log_ahead(&mut self, input: usize) -> Result<bool> {
        let barrier = Control::Barrier(self.aligner.captured());
        if self.inputs[input].unlogged {
            if self.log_backlog(input) {
                self.come_to(input, barrier)?;
                return Ok(true);
            }
            if self.inputs[input].unlogged {
                return Ok(false);
            }
        }
        let ring = &mut self.inputs[input].ring;
        let is_full = ring.len() == ring.capacity();
        match ring.overtake(barrier) {
            Some(records) => {
                records.into_iter().for_each(|records| self.log.append(input, records));
                self.come_to(input, barrier)?;
                Ok(true)
            }
            None if is_full => self.take_in(input, BATCH_RECORDS),
            None => Ok(false),
        }
    }

    /// `input` has come to a mark while nothing can be captured: a trigger that comes of it is due.
    fn come_to(&mut self, input: usize, control: Control) -> Result<()> {
        if let Pulled::Barrier(snapshot) = self.control(input, control)? {
            self.due = Some(snapshot);
        }
        Ok(())
    }

    /// Sets aside up to `max` records of what the ring of `input` has; of a late input also into the
    /// log, up to its barrier. Whether anything moved. A trigger that comes of it is noted as due.
    fn take_in(&mut self, input: usize, max: usize) -> Result<bool> {
        let mut moved = self.inputs[input].backlog.poll()?;
        let mut left = max;
        let mut full = false;
        while left > 0 {
            let late = self.aligner.is_late(input) && !self.inputs[input].unlogged;
            let Input { ring, backlog, .. } = &mut self.inputs[input];
            let control = match ring.poll(left) {
                Polled::Empty | Polled::Closed => break,
                Polled::Records(mut records) => {
                    backlog.weigh(records.as_slice());
                    let room = backlog.room().min(records.len());
                    if room == 0 {
                        full = true;
                        break;
                    }
                    if late {
                        let admitted = self.aligner.admit(input, Arrival::Records);
                        let verdict = admitted.map_err(|error| fault(&self.setting, &error))?;
                        assert!(matches!(verdict, Verdict::Log(_)), "late input: {verdict:?}");
                        self.log.append(input, &records.as_slice()[..room]);
                    }
                    let taken = backlog.push(&mut records);
                    assert_eq!(taken, room, "a backlog takes what it has room for");
                    left -= taken;
                    None
                }
                Polled::Control(control @ Control::Barrier(_)) if late => Some(control),
                Polled::Control(control) => {
                    backlog.push_control(control);
                    None
                }
            };
            if let Some(barrier) = control {
                self.come_to(input, barrier)?;
                if self.due.is_some() {
                    return Ok(true);
                }
            }
            moved = true;
        }
        if full {
            self.check_outgrown(input)?;
        }
        Ok(moved)
    }

    /// The backlog of `input` has no room.
    fn check_outgrown(&mut self, input: usize) -> Result<()> {
        let Input { kind, backlog, .. } = &mut self.inputs[input];
        if *kind == InputKind::Regular || !backlog.is_exhausted() {
            return Ok(());
        }
        let loop_name = &self.setting.operator;
        Err(self.outgrown(Error::Limit {
            what: format!("what goes round in loop '{loop_name}'"),
            limit: self.setting.loop_limit.clone(),
            remedy:
                "if the loop makes more records than it lets out, mend its body; if not, name a \
                     directory to spill to (--spill), or give it more memory"
                    .into(),
        }))
    }

    /// Nothing sets aside what is in the rings of a loop's body, and their bound is a number of records:
    /// they hold ever more where each record grows. Their weight is an estimate, and not all that goes round
    /// weighs what comes back here: so a loop fails only if records have become twice as heavy again
    /// since they seemed to be too much, which no loop does whose records keep their size.
    pub(super) fn check_grown(&mut self) -> Result<()> {
        let Some(flight) = self.setting.flight.as_ref().filter(|_| needs_drop::<T>()) else {
            return Ok(());
        };
        let heaviest = |kind| {
            let inputs = self.inputs.iter().filter(|input| input.kind == kind);
            inputs.map(|input| input.backlog.record_bytes()).max().unwrap_or(0)
        };
        let (entered, back) = (heaviest(InputKind::Regular), heaviest(InputKind::BackEdge));
        let aloft_bytes_max = self.setting.aloft_bytes_max;
        if back <= 2 * entered || flight.aloft() <= (aloft_bytes_max / back) as u64 {
            self.too_heavy_since = None;
            return Ok(());
        }
        if back < 2 * *self.too_heavy_since.get_or_insert(back) {
            return Ok(());
        }
        let loop_name = &self.setting.operator;
        Err(self.outgrown(Error::Limit {
            what: format!(
                "what goes round in loop '{loop_name}', records of some {back} bytes now,"
            ),
            limit: format!("{aloft_bytes_max} bytes in the channels of a loop"),
            remedy:
                "the loop makes its records larger than they came in; mend its body, or give it \
                     more memory to spill from"
                    .into(),
        }))
    }

    /// Puts `error` down to the loop, and not to the operator that happened to run.
    fn outgrown(&self, error: Error) -> Error {
        let (operator, subtask) = (self.setting.operator.clone(), self.log.subtask());
        Error::Operator { operator, subtask, source: Box::new(error) }
    }

    /// Tells how many records from inside the loop wait here, in memory or on disk.
    pub(super) fn tell_aside(&mut self) {
        let Some(flight) = &self.setting.flight else { return };
        let inside = self.inputs.iter().filter(|input| input.inside);
        let aside = inside.map(|input| input.backlog.len()).sum();
        if aside != self.told_aside {
            flight.aside(std::mem::replace(&mut self.told_aside, aside), aside);
        }
    }

    pub(super) fn set_aside_if_needed(&mut self, input: usize) -> Result<bool> {
        let Input { ring, kind, .. } = &self.inputs[input];
        let may = self.setting.spill || *kind == InputKind::BackEdge;
        if may && ring.len() >= ring.capacity().div_ceil(2) {
            return self.take_in(input, INPUT_RECORDS_MAX);
        }
        Ok(false)
    }

    /// The stage is full. Empties the rings that must not fill up meanwhile. Whether anything moved.
    ///
    /// # Errors
    /// A disk's; a loop that outgrows its bounds.
    pub fn relieve(&mut self, now_ns: u64) -> Result<bool> {
        self.tell_aside();
        let overdue = self.is_overdue(now_ns);
        let mut worked = self.poll_disk()?;
        for input in 0..self.inputs.len() {
            let back_edge = self.inputs[input].kind == InputKind::BackEdge;
            if self.aligner.is_late(input) && self.log_ahead(input)? {
                worked = true;
            } else if overdue || back_edge {
                worked |= self.take_in(input, INPUT_RECORDS_MAX)?;
            } else if self.aligner.is_blocked(input) {
                worked |= self.set_aside_if_needed(input)?;
            }
        }
        Ok(worked)
    }
}
