//! A random graph as a list of edges, each a pure function of its number.
//!
//! Both ends of an edge are drawn evenly from all vertices, so an edge may come twice or lead from a
//! vertex to itself. With half as many edges as vertices most components are small; from there on
//! one of them grows into most of the graph (Erdős, Rényi, "On the Evolution of Random Graphs", 1960).
//!
//! ```
//! use tidegate::workload::edges::Edges;
//! let edges = Edges { vertices: 10, seed: 1 };
//! assert_eq!(edges.edge(7), edges.edge(7));
//! assert!((0..100).map(|index| edges.edge(index)).all(|(a, b)| a < 10 && b < 10));
//! ```

use super::paper::mix;

/// A list of edges without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edges {
    /// Vertices are the numbers below this; at least 1.
    pub vertices: u64,
    /// Another seed gives another list.
    pub seed: u64,
}

impl Edges {
    /// The ends of edge number `index`.
    #[must_use]
    pub fn edge(&self, index: u64) -> (u64, u64) {
        let from = mix(mix(self.seed).wrapping_add(index));
        (from % self.vertices, mix(from) % self.vertices)
    }
}
