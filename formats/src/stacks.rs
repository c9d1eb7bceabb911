//! Experts' tensors that lie behind one another in one: as several runtimes want them, and some checkpoints have them.

use std::collections::BTreeMap;

use crate::container::TensorSpec;

/// By the name of a stack those of its members, in order.
pub type Stacks = BTreeMap<String, Vec<String>>;

/// Puts stacks in the place of their members. `place` names a tensor's stack and its number there; all members of a stack have one type and
/// shape, and a stack lies where its first member was.
pub(crate) fn stacked(
    specs: Vec<TensorSpec>,
    place: impl Fn(&str) -> Option<(String, usize)>,
) -> (Vec<TensorSpec>, Stacks) {
    let mut members: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
    let mut found = Vec::with_capacity(specs.len());
    for spec in specs {
        let Some((stack, number)) = place(&spec.name) else {
            found.push(spec);
            continue;
        };
        let members = members.entry(stack.clone()).or_default();
        if members.is_empty() {
            found.push(TensorSpec { name: stack, ..spec.clone() });
        }
        members.insert(number, spec.name);
    }
    for spec in &mut found {
        if let Some(members) = members.get(&spec.name) {
            spec.shape.insert(0, members.len());
        }
    }
    let stacks = members.into_iter().map(|(stack, members)| (stack, members.into_values().collect()));
    (found, stacks.collect())
}

/// Places of a tensor's members, or of itself: names, offsets and lengths.
pub(crate) fn places<'s>(
    stacks: &'s Stacks,
    name: &'s str,
    offset: u64,
    bytes: u64,
) -> impl Iterator<Item = (String, u64, u64)> + 's {
    let members = stacks.get(name);
    let count = members.map_or(1, Vec::len);
    let each = bytes / count.max(1) as u64;
    (0..count).map(move |number| {
        let name = members.map_or_else(|| name.to_owned(), |members| members[number].clone());
        (name, offset + number as u64 * each, each)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;

    #[test]
    fn members_come_in_the_order_of_their_numbers() {
        let spec = |name: &str| TensorSpec { name: name.to_owned(), dtype: Dtype::F16, shape: vec![2, 3] };
        let specs = vec![spec("a"), spec("e.1"), spec("e.0"), spec("b")];
        let (specs, stacks) = stacked(specs, |name| {
            let number = name.strip_prefix("e.")?.parse().ok()?;
            Some(("all".to_owned(), number))
        });
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["a", "all", "b"]);
        assert_eq!(
            (&specs[1].shape[..], &stacks["all"][..]),
            (&[2, 2, 3][..], &["e.0".to_owned(), "e.1".to_owned()][..])
        );
        let found: Vec<_> = places(&stacks, "all", 100, 24).collect();
        assert_eq!(found, [("e.0".to_owned(), 100, 12), ("e.1".to_owned(), 112, 12)]);
    }
}
