//! Loops of the logical graph: strongly connected components and their back-edges.
//!
//! A *back-edge* is an edge to a vertex on the current depth-first path (not "already visited": that
//! would also name the cross edge of a diamond). Which edge of a cycle that is depends on where
//! the search begins, so a job says which edge feeds back ([`Link::feedback`]) and this analysis
//! checks it: without the declared ones nothing may be left that closes a cycle. A declared edge
//! that closes none is an ordinary edge.

/// An edge from one vertex to another, both by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where it begins.
    pub from: usize,
    /// Where it ends.
    pub to: usize,
    /// Declared to feed back.
    pub feedback: bool,
}

/// What the analysis found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loops {
    /// By vertex: the loop it is part of.
    pub loop_of: Vec<Option<usize>>,
    /// By edge: whether it closes a cycle.
    pub back_edge: Vec<bool>,
    /// Number of loops (strongly connected components with a cycle).
    pub count: usize,
}

impl Loops {
    /// Finds the loops of a graph with this many vertices.
    ///
    /// # Errors
    /// A cycle in which no edge is declared to feed back, as its vertices in order.
    pub fn find(vertices: usize, links: &[Link]) -> Result<Self, Vec<usize>> {
        if let Some(cycle) = undeclared_cycle(vertices, links) {
            return Err(cycle);
        }
        let reached: Vec<Vec<bool>> =
            (0..vertices).map(|from| reachable(vertices, links, from)).collect();
        let mut loop_of = vec![None; vertices];
        let mut count = 0;
        for vertex in 0..vertices {
            // A vertex is in a loop if it reaches itself; in the same one as what it reaches and is
            // reached from.
            if loop_of[vertex].is_some() || !reached[vertex][vertex] {
                continue;
            }
            for (other, is_in) in loop_of.iter_mut().enumerate() {
                if reached[vertex][other] && reached[other][vertex] {
                    *is_in = Some(count);
                }
            }
            count += 1;
        }
        let mut loops = Self { loop_of, back_edge: Vec::new(), count };
        let closes = |link: &Link| link.feedback && loops.is_inside(link.from, link.to);
        loops.back_edge = links.iter().map(closes).collect();
        Ok(loops)
    }

    /// Whether both ends of an edge are in one loop.
    #[must_use]
    pub fn is_inside(&self, from: usize, to: usize) -> bool {
        self.loop_of[from].is_some() && self.loop_of[from] == self.loop_of[to]
    }
}

/// The vertices that at least one link leads to from `from`.
fn reachable(vertices: usize, links: &[Link], from: usize) -> Vec<bool> {
    let mut reached = vec![false; vertices];
    let mut open = vec![from];
    while let Some(at) = open.pop() {
        for link in links.iter().filter(|link| link.from == at) {
            if !std::mem::replace(&mut reached[link.to], true) {
                open.push(link.to);
            }
        }
    }
    reached
}

/// A cycle without a declared link, by depth-first search: a link to a vertex on the current path.
fn undeclared_cycle(vertices: usize, links: &[Link]) -> Option<Vec<usize>> {
    let mut done = vec![false; vertices];
    for root in 0..vertices {
        // The current path, and which link each of its vertices looks at next.
        let mut path = vec![(root, 0)];
        while let Some(&(at, next)) = path.last() {
            let mut onward = links.iter().enumerate().skip(next);
            let Some((index, link)) = onward.find(|(_, link)| link.from == at && !link.feedback)
            else {
                done[at] = true;
                path.pop();
                continue;
            };
            path.last_mut().expect("seen above").1 = index + 1;
            if let Some(start) = path.iter().position(|&(on_path, _)| on_path == link.to) {
                return Some(path[start..].iter().map(|&(vertex, _)| vertex).collect());
            }
            if !done[link.to] {
                path.push((link.to, 0));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a>b` is a link, `a~b` one that feeds back.
    fn links(text: &str) -> Vec<Link> {
        let link = |text: &str| {
            let feedback = text.contains('~');
            let (from, to) = text.split_once(['>', '~']).expect("a link");
            Link { from: from.parse().unwrap(), to: to.parse().unwrap(), feedback }
        };
        text.split(' ').map(link).collect()
    }

    #[test]
    fn the_cross_edge_of_a_diamond_closes_no_loop() {
        let loops = Loops::find(4, &links("0>1 0>2 1>3 2>3")).unwrap();
        assert_eq!((loops.count, loops.loop_of), (0, vec![None; 4]));
    }

    #[test]
    fn trap_21_nested_loops_are_one_component_and_separate_loops_are_two() {
        let nested = links("0>1 1>2 2>3 3~2 3>4 4~1 4>5");
        let loops = Loops::find(6, &nested).unwrap();
        assert_eq!(loops.loop_of, [None, Some(0), Some(0), Some(0), Some(0), None]);
        assert_eq!(loops.back_edge, [false, false, false, true, false, true, false]);

        let separate = links("0>1 1>2 2~1 2>3 3~3 3>4");
        let loops = Loops::find(5, &separate).unwrap();
        assert_eq!(loops.loop_of, [None, Some(0), Some(0), Some(1), None]);
        assert!(!loops.is_inside(2, 3) && loops.is_inside(1, 2));
    }

    #[test]
    fn a_declared_edge_that_closes_no_cycle_is_an_ordinary_edge() {
        let loops = Loops::find(3, &links("0>1 2~1 0>2")).unwrap();
        assert_eq!((loops.count, loops.back_edge), (0, vec![false; 3]));
    }

    #[test]
    fn a_cycle_without_a_declared_edge_is_named_in_order() {
        assert_eq!(Loops::find(4, &links("0>1 1>2 2>3 3>1")), Err(vec![1, 2, 3]));
        assert_eq!(Loops::find(1, &links("0>0")), Err(vec![0]));
    }
}
