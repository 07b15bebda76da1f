//! The oracle for graphs: union-find, and degrees by counting.

use std::collections::BTreeMap;

/// Component (its smallest vertex) and degree of each vertex of `edges`.
pub fn components(edges: impl IntoIterator<Item = (u64, u64)>) -> BTreeMap<u64, (u64, u64)> {
    let (mut parents, mut degrees) = (BTreeMap::new(), BTreeMap::new());
    for (one, other) in edges {
        for end in [one, other] {
            parents.entry(end).or_insert(end);
            *degrees.entry(end).or_insert(0) += 1;
        }
        let roots = (root(&mut parents, one), root(&mut parents, other));
        // The smaller one is the root, and so the name of the component.
        parents.insert(roots.0.max(roots.1), roots.0.min(roots.1));
    }
    degrees
        .into_iter()
        .map(|(vertex, degree)| (vertex, (root(&mut parents, vertex), degree)))
        .collect()
}

fn root(parents: &mut BTreeMap<u64, u64>, mut vertex: u64) -> u64 {
    while parents[&vertex] != vertex {
        let above = parents[&parents[&vertex]];
        parents.insert(vertex, above);
        vertex = above;
    }
    vertex
}
