//! The lives of one simulated job: runs, incidents, restarts on other numbers of workers, the end.
//!
//! A *life* is one process: opened, stepped under a drawn schedule, ended by the job's end, by an
//! incident, or by an error that the incident caused. Only so many lives have incidents; then the
//! job must come to its end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate::config::{Config, Mode, Restarts, Snapshots};
use tidegate::disk::{Disk, Faults, MemoryDisk};
use tidegate::engine::stepper::{Stepper, Stepping};
use tidegate::engine::{End, Handle, Notice};
use tidegate::graph::Graph;
use tidegate::worker::Step;

use super::job::{Committed, Simulated, draw};
use crate::common::random::{Random, mix};
use crate::common::run::{Told, lines};

/// Steps of one life after which it is stuck.
const STEPS_MAX: u64 = 3_000_000;
/// Rounds in a row in which nothing happens although time goes by: stuck.
const IDLE_MAX: u64 = 4_000;

/// What goes wrong in a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incident {
    Nothing,
    /// The process is killed; what was written stays.
    Kill,
    /// The power fails.
    Crash,
    /// The power fails after so many changes of the disk.
    PowerLost(u64),
    /// User code panics at this record.
    Panic(u64),
    /// The disk is bad, until this step.
    BadDisk(u64),
    /// The disk has only so much room, until this step.
    FullDisk(u64),
    /// A stop is asked for at this step.
    Stop(u64),
}

/// What a whole simulation came to, to be compared and counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub trace: u64,
    pub lives: u64,
    pub steps: u64,
    pub completed: u64,
    pub aborted: u64,
    pub restarts: u64,
    pub errors: u64,
    /// A damaged newest snapshot was passed over. What had been published since is taken back from
    /// files; what was collected in memory is out of reach, as it would be in another system.
    pub fallbacks: u64,
}

struct World {
    random: Random,
    disk: MemoryDisk,
    now_ns: u64,
    summary: Summary,
}

/// How a life ended.
enum Death {
    Complete,
    Stopped,
    Gone,
}

/// Runs the job of `seed` through all its lives.
pub fn simulate(seed: u64) -> Result<Summary, String> {
    let mut random = Random::new(seed);
    let mut job = draw(&mut random);
    let disk = MemoryDisk::new(random.next());
    let mut incidents = random.below(12);
    let mut world = World { random, disk, now_ns: 0, summary: Summary::default() };
    let mut committed = Committed::default();
    loop {
        let incident = if incidents > 0 { world.incident() } else { Incident::Nothing };
        let fate = (incident, incidents == 0);
        incidents = incidents.saturating_sub(1);
        world.summary.lives += 1;
        world.redraw_parallelism(&mut job);
        let config = world.config();
        job.fuse.store(
            if let Incident::Panic(at) = incident { at as i64 } else { 0 },
            Ordering::Relaxed,
        );
        let death = world.live(&job, &config, fate).map_err(|e| format!("{incident:?}: {e}"))?;
        world.disk.set_faults(Faults::default());
        job.fuse.store(0, Ordering::Relaxed);
        let lost = matches!(incident, Incident::Crash | Incident::PowerLost(_));
        if lost || (matches!(death, Death::Gone) && world.random.one_in(2)) {
            world.disk.crash();
        }
        if std::env::var_os("TIDEGATE_TRACE").is_some() {
            world.show_output();
        }
        committed.take(&job, &lines(&world.disk, "/out"));
        job.check_partly(&committed.files).map_err(|e| format!("after {incident:?}: {e}"))?;
        if let Death::Complete = death {
            break;
        }
    }
    job.check(&committed, world.summary.fallbacks > 0)?;
    world.opens_as_complete(&job, &mut committed)?;
    Ok(world.summary)
}

impl World {
    fn incident(&mut self) -> Incident {
        let bits = 5 + self.random.below(8);
        let at = 1 + self.random.below(1 << bits);
        match self.random.below(9) {
            0 => Incident::Nothing,
            1 | 2 => Incident::Kill,
            3 => Incident::Crash,
            4 => Incident::PowerLost(self.random.below(120)),
            5 => Incident::Panic(1 + self.random.below(300)),
            6 => Incident::BadDisk(at),
            7 => Incident::FullDisk(at),
            _ => Incident::Stop(at),
        }
    }

    fn faults(&mut self, incident: Incident) -> Faults {
        let mut chance = |max| self.random.below(2) as u32 * self.random.below(max) as u32;
        match incident {
            Incident::PowerLost(after) => {
                Faults { power_lost_after: Some(after), ..Faults::default() }
            }
            Incident::BadDisk(_) => Faults {
                read_error: chance(300),
                write_error: chance(1_000),
                sync_error: chance(1_000),
                short_write: chance(5_000),
                ..Faults::default()
            },
            Incident::FullDisk(_) => {
                let capacity = (self.random.below(12) << 24) + self.random.below(1 << 16);
                Faults { capacity_bytes: Some(capacity), ..Faults::default() }
            }
            _ => Faults::default(),
        }
    }

    fn config(&mut self) -> Config {
        let random = &mut self.random;
        let mut config = Config::workers(random.pick(&[1, 2, 3, 4]));
        config.ring_slots = random.pick(&[1, 2, 4, 8]);
        let mut snapshots =
            Snapshots::every(Duration::from_millis(random.pick(&[1, 1, 2, 7])), "/snapshots");
        let after = Duration::from_micros(random.pick(&[0, 100, 2_000]));
        let unaligned = Mode::Unaligned { after };
        snapshots.mode = random.pick(&[Mode::Abs, Mode::Abs, unaligned, Mode::Synchronous]);
        snapshots.retained = random.pick(&[2, 3]);
        snapshots.timeout = Duration::from_millis(random.pick(&[5, 50, 60_000]));
        config.snapshots = Some(snapshots);
        config.spill.blocked = !random.one_in(4);
        // With little memory and much that goes round, the rest goes to disk.
        config.spill.memory_bytes = random.pick(&[64, 1 << 10, 1 << 20]);
        config.restarts = Restarts {
            failures_max: 3,
            backoff: Duration::from_millis(random.below(3)),
            backoff_max: Duration::from_millis(10),
        };
        config
    }

    /// Prints which files there are, with their lengths.
    fn show_output(&self) {
        for name in self.disk.list("/out".as_ref()).unwrap_or_default() {
            let path = std::path::Path::new("/out").join(&name);
            eprintln!("    {}: {} bytes", path.display(), self.disk.len(&path).unwrap_or(0));
        }
    }

    fn redraw_parallelism(&mut self, job: &mut Simulated) {
        for operator in &mut job.graph.operators {
            if !job.fixed.contains(&operator.name) {
                let drawn = 1 + self.random.below(4) as usize;
                operator.parallelism = self.random.one_in(3).then_some(drawn);
            }
        }
    }

    fn trace(&mut self, what: u64) {
        self.summary.trace = mix(self.summary.trace.rotate_left(7) ^ what);
    }

    fn tell(&mut self, told: Vec<Told>) {
        for told in told {
            match &told {
                Told::Completed(_) => self.summary.completed += 1,
                Told::Aborted(..) => self.summary.aborted += 1,
                Told::Restarting(_) => self.summary.restarts += 1,
                Told::Warning(text) if text.contains("cannot be restored") => {
                    self.summary.fallbacks += 1;
                }
                Told::Warning(_) | Told::Restored(_) => {}
            }
            if std::env::var_os("TIDEGATE_TRACE").is_some() {
                eprintln!("  step {} at {} ns: {told:?}", self.summary.steps, self.now_ns);
            }
            format!("{told:?}").bytes().for_each(|byte| self.trace(u64::from(byte)));
        }
    }

    fn live(
        &mut self,
        job: &Simulated,
        config: &Config,
        (incident, last): (Incident, bool),
    ) -> Result<Death, String> {
        if std::env::var_os("TIDEGATE_TRACE").is_some() {
            eprintln!("life {} with {incident:?}: {config:?}", self.summary.lives);
        }
        let faults = self.faults(incident);
        self.disk.set_faults(faults);
        let handle = Handle::default();
        let opened = self.open(&job.graph, config, &handle);
        let mut stepper = match opened {
            Ok(Some(stepper)) => stepper,
            Ok(None) => return Ok(Death::Complete),
            Err(error) => return self.died(incident, error),
        };
        let lazy = self.random.below(4); // a worker that is stepped less often than the others
        let late = self.random.below(6); // and one that mostly hears of a barrier after it was there
        let slow = self.random.one_in(2).then(|| 1 << self.random.below(8)); // steps that a commit takes
        if slow.is_some() {
            stepper.hold_commits();
        }
        let hurry = 1 << self.random.below(7);
        // Every life but the last is cut short somewhere.
        let ends = (!last).then(|| 1 << (4 + self.random.below(9)));
        let ends = ends.map(|span| 1 + self.random.below(span));
        let (mut step, mut idle) = (0, 0);
        loop {
            step += 1;
            if ends == Some(step) {
                return Ok(Death::Gone);
            }
            self.summary.steps += 1;
            match incident {
                Incident::Stop(at) if step == at => handle.stop(),
                Incident::BadDisk(at) | Incident::FullDisk(at) if step == at => {
                    self.disk.set_faults(Faults::default());
                }
                _ => {}
            }
            if step > STEPS_MAX || idle > IDLE_MAX {
                return Err(format!("stuck after {step} steps, {idle} of them idle"));
            }
            if slow.is_some_and(|steps| self.random.one_in(steps)) {
                stepper.commit(self.random.below(64) as usize);
            }
            let workers = stepper.workers() as u64;
            if workers == 0 || idle > 0 || self.random.one_in(8) {
                let mut told = Vec::new();
                let ended = stepper.supervise(self.now_ns, &mut |n| told.extend(Told::of(&n)));
                if !told.is_empty() {
                    idle = 0;
                }
                self.tell(told);
                match ended {
                    None => {}
                    Some(Ok(report)) => {
                        return Ok(if report.end == End::Stopped {
                            Death::Stopped
                        } else {
                            Death::Complete
                        });
                    }
                    Some(Err(error)) => return self.died(incident, error.to_string()),
                }
            }
            let workers = stepper.workers() as u64;
            if workers > 0 {
                let mut worker = self.random.below(workers);
                if worker == lazy && !self.random.one_in(10) {
                    worker = self.random.below(workers);
                }
                let hears_late = worker == late && !self.random.one_in(10);
                stepper.set_late(worker as usize, hears_late);
                match stepper.step(worker as usize, self.now_ns) {
                    Step::Worked => idle = 0,
                    Step::Idle(_) | Step::Stopped => idle += 1,
                }
                self.trace(worker << 32 | u64::from(idle == 0));
            } else {
                idle += 1;
            }
            // Where nothing goes on time goes by faster, so that no pause is long.
            let pace = if idle > 40 { 1_000_000 } else { 500 * hurry };
            self.now_ns += self.random.below(pace);
        }
    }

    fn open<'g>(
        &mut self,
        graph: &'g Graph,
        config: &Config,
        handle: &Handle,
    ) -> Result<Option<Stepper<'g>>, String> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let mut told = Vec::new();
        let mut hear = |notice: Notice<'_>| told.extend(Told::of(&notice));
        let opened = catch_unwind(AssertUnwindSafe(|| {
            Stepper::open(graph, config, disk, handle.clone(), &mut hear)
        }));
        self.tell(told);
        match opened
            .map_err(|_| "opening panicked".to_string())?
            .map_err(|error| error.to_string())?
        {
            Stepping::Ready(stepper) => Ok(Some(stepper)),
            Stepping::Complete(_) => Ok(None),
        }
    }

    /// A job that ended with an error must have had a reason to.
    fn died(&mut self, incident: Incident, error: String) -> Result<Death, String> {
        self.summary.errors += 1;
        error.bytes().for_each(|byte| self.trace(u64::from(byte)));
        if std::env::var_os("TIDEGATE_TRACE").is_some() {
            eprintln!("  died: {error}");
        }
        let excused = match incident {
            Incident::PowerLost(_) | Incident::BadDisk(_) | Incident::FullDisk(_) => true,
            Incident::Nothing
            | Incident::Kill
            | Incident::Crash
            | Incident::Panic(_)
            | Incident::Stop(_) => false,
        };
        // A timeout of 5 ms may be too short for a last snapshot through a loop in rings of one slot.
        let excused = excused || error.contains("the last snapshot failed");
        if excused { Ok(Death::Gone) } else { Err(format!("it failed for no reason: {error}")) }
    }

    /// Running a complete job again says so and changes nothing.
    fn opens_as_complete(
        &mut self,
        job: &Simulated,
        committed: &mut Committed,
    ) -> Result<(), String> {
        let config = self.config();
        if self.open(&job.graph, &config, &Handle::default())?.is_some() {
            return Err("a complete job runs again".into());
        }
        let before = committed.clone();
        committed.take(job, &lines(&self.disk, "/out"));
        if *committed == before { Ok(()) } else { Err("a second run changed the output".into()) }
    }
}
