//! A task's inputs: the only place that reads channels and the only caller of the aligner.
//!
//! Invariants
//! - Every batch and every mark is admitted by [`Aligner::admit`] before anything is done with it.
//! - A blocked input is not read; every other input is, in turn and with a bound, so that after an
//!   alignment none starves and none floods (trap 7).
//! - A batch ends at a mark; records behind it are not touched (trap 5).

use crate::align::{Aligner, Arrival, Verdict};
use crate::channel::{Consumer, Polled};
use crate::config::INPUT_RECORDS_MAX;
use crate::error::Result;
use crate::id::SnapshotId;
use crate::operator::{Flow, Stage};

/// What a pull found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// Records were handled, or a mark was.
    Worked,
    /// The chain has no room: flush it before the next pull.
    Full,
    /// Nothing there.
    Nothing,
    /// Every input has delivered this barrier: capture now.
    Barrier(SnapshotId),
    /// Every input has ended.
    Ended,
}

/// The inputs of one task, all of one record type.
pub struct Inbox<T: Send> {
    inputs: Vec<Consumer<T>>,
    aligner: Aligner,
    /// The input to look at first.
    turn: usize,
}

impl<T: Send> Inbox<T> {
    /// Reads `inputs`; the last captured snapshot is `captured`.
    #[must_use]
    pub fn new(inputs: Vec<Consumer<T>>, captured: SnapshotId) -> Self {
        let aligner = Aligner::new(inputs.len(), captured);
        Self { inputs, aligner, turn: 0 }
    }

    /// Looks at each input once and gives what it may to `stage`.
    ///
    /// # Errors
    /// The stage's.
    pub fn pull(&mut self, stage: &mut dyn Stage<T>) -> Result<Pulled> {
        let mut worked = false;
        for _ in 0..self.inputs.len() {
            let input = self.turn;
            self.turn = if input + 1 == self.inputs.len() { 0 } else { input + 1 };
            if self.aligner.is_blocked(input) {
                continue;
            }
            match self.inputs[input].poll(INPUT_RECORDS_MAX) {
                Polled::Empty | Polled::Closed => {}
                Polled::Records(mut records) => {
                    worked = true;
                    let verdict = admit(&mut self.aligner, input, Arrival::Records);
                    assert_eq!(verdict, Verdict::Process, "input {input} is not blocked");
                    if stage.process(&mut records)? == Flow::Full {
                        return Ok(Pulled::Full);
                    }
                }
                Polled::Control(control) => {
                    worked = true;
                    match admit(&mut self.aligner, input, Arrival::Control(control)) {
                        Verdict::Capture(snapshot) => return Ok(Pulled::Barrier(snapshot)),
                        Verdict::AllEnded => return Ok(Pulled::Ended),
                        Verdict::Noted => {}
                        verdict @ (Verdict::Process | Verdict::Block) => {
                            unreachable!("{control:?} of input {input}: {verdict:?}")
                        }
                    }
                }
            }
        }
        Ok(if worked { Pulled::Worked } else { Pulled::Nothing })
    }

    /// Whether an alignment is under way.
    #[must_use]
    pub fn is_aligning(&self) -> bool {
        self.aligner.is_aligning()
    }
}

/// A sender that breaks the protocol is a defect of tidegate: it stops the task with a panic, which
/// the worker reports, rather than letting a wrong snapshot pass.
fn admit(aligner: &mut Aligner, input: usize, arrival: Arrival) -> Verdict {
    aligner.admit(input, arrival).unwrap_or_else(|error| panic!("barrier protocol: {error}"))
}
