//! temporary
use crate::disk::Disk;
use crate::error::Result;
use crate::id::SnapshotId;
use crate::record::{Batch, Buffer, Control, Record};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[derive(Clone, Copy)]
pub struct Limits {
    pub memory_bytes: usize,
    pub disk_bytes: u64,
}
pub struct Place {
    pub disk: Arc<dyn Disk>,
    pub path: PathBuf,
    pub owner: String,
    pub subtask: u32,
}
pub enum Front {
    Empty,
    Waiting,
    Records,
    Control(Control),
}
enum E<T> {
    R(VecDeque<T>),
    C(Control),
}
pub struct Backlog<T> {
    q: VecDeque<E<T>>,
    n: usize,
    max: usize,
}
impl<T: Record> Backlog<T> {
    pub fn new(limits: Limits, _place: Option<Place>) -> Self {
        Self { q: VecDeque::new(), n: 0, max: limits.memory_bytes / size_of::<T>().max(1) }
    }
    pub fn is_empty(&self) -> bool {
        self.q.is_empty()
    }
    pub fn memory_bytes(&self) -> usize {
        self.n * size_of::<T>()
    }
    pub fn is_in_memory(&self) -> bool {
        true
    }
    pub fn room(&self) -> usize {
        self.max - self.n
    }
    pub fn is_exhausted(&self) -> bool {
        self.room() == 0
    }
    pub fn push(&mut self, b: &mut Batch<'_, T>) -> usize {
        let k = self.room().min(b.len());
        if k == 0 {
            return 0;
        }
        if !matches!(self.q.back(), Some(E::R(_))) {
            self.q.push_back(E::R(VecDeque::new()));
        }
        let Some(E::R(r)) = self.q.back_mut() else { unreachable!() };
        r.extend(b.drain(k));
        self.n += k;
        k
    }
    pub fn push_control(&mut self, c: Control) {
        self.q.push_back(E::C(c));
    }
    pub fn front(&mut self) -> Front {
        match self.q.front() {
            None => Front::Empty,
            Some(E::R(_)) => Front::Records,
            Some(E::C(c)) => Front::Control(*c),
        }
    }
    pub fn pop_control(&mut self) {
        assert!(matches!(self.q.pop_front(), Some(E::C(_))));
    }
    pub fn lend<R>(&mut self, max: usize, f: impl FnOnce(&mut Batch<'_, T>) -> R) -> R {
        let Some(E::R(r)) = self.q.front_mut() else { panic!() };
        let mut buf = Buffer::with_capacity(max);
        let k = max.min(r.len());
        buf.fill().extend(r.drain(..k));
        self.n -= k;
        let out = buf.lend(f);
        let mut rest = VecDeque::new();
        buf.lend(|b| rest.extend(b.drain(usize::MAX)));
        self.n += rest.len();
        rest.append(r);
        *r = rest;
        if r.is_empty() {
            self.q.pop_front();
        }
        out
    }
    pub fn before(&self, n: SnapshotId, visit: &mut dyn FnMut(&[T])) -> bool {
        for e in &self.q {
            match e {
                E::R(r) => {
                    let (a, b) = r.as_slices();
                    visit(a);
                    visit(b);
                }
                E::C(Control::Barrier(m)) if *m == n => return true,
                E::C(_) => {}
            }
        }
        false
    }
    pub fn remove_barrier(&mut self, n: SnapshotId) -> bool {
        let at = self.q.iter().position(|e| matches!(e, E::C(Control::Barrier(m)) if *m == n));
        at.map(|at| self.q.remove(at)).is_some()
    }
    pub fn poll(&mut self) -> Result<bool> {
        Ok(false)
    }
}
pub fn remove_leftovers(_disk: &dyn Disk, _directory: &Path) -> Result<()> {
    Ok(())
}
