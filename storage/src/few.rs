//! A list that mostly holds one.
//!
//! ```text
//!   None ──► One(in place) ──► Many(elsewhere)         back to None when the last one goes; Many stays Many while any are left
//! ```
//! A session has one run of segments, one subscriber and one interested shard more often than not: there are as many such lists as
//! there are clients, and each that is a `Vec` costs an allocation of its own.

use std::ops::Deref;

/// See the module.
#[derive(Clone, Debug)]
pub struct Few<T>(Inner<T>);

#[derive(Clone, Debug, Default)]
enum Inner<T> {
    #[default]
    None,
    One(T),
    #[expect(clippy::box_collection, reason = "a list of many is rare, the place for its three words is not")]
    Many(Box<Vec<T>>),
}

const _: () = assert!(size_of::<Few<u32>>() == 16);

impl<T> Few<T> {
    /// Nothing.
    pub const fn new() -> Self {
        Self(Inner::None)
    }

    /// One more, behind the others.
    pub fn push(&mut self, item: T) {
        self.0 = match std::mem::take(&mut self.0) {
            Inner::None => Inner::One(item),
            Inner::One(first) => {
                // A list that has grown once grows again.
                let mut all = Vec::with_capacity(4);
                all.extend([first, item]);
                Inner::Many(Box::new(all))
            }
            Inner::Many(mut all) => {
                all.push(item);
                Inner::Many(all)
            }
        };
    }

    /// Takes out what stands at `at`, which is there; the last one takes its place.
    pub fn swap_remove(&mut self, at: usize) {
        if let Inner::Many(all) = &mut self.0
            && all.len() > 1
        {
            all.swap_remove(at);
        } else {
            assert!(at < self.len(), "nothing stands there");
            self.0 = Inner::None;
        }
    }

    /// Takes out the first `count`; all, where there are no more.
    pub fn remove_first(&mut self, count: usize) {
        match &mut self.0 {
            Inner::Many(all) if count < all.len() => drop(all.drain(..count)),
            _ if count > 0 => self.0 = Inner::None,
            _ => {}
        }
    }

    /// Keeps those that are wanted.
    pub fn retain(&mut self, mut wanted: impl FnMut(&T) -> bool) {
        let any = match &mut self.0 {
            Inner::None => true,
            Inner::One(one) => wanted(one),
            Inner::Many(all) => {
                all.retain(wanted);
                !all.is_empty()
            }
        };
        if !any {
            self.0 = Inner::None;
        }
    }

    /// Takes out all.
    pub fn clear(&mut self) {
        self.0 = Inner::None;
    }

    /// Bytes beside its own.
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Inner::None | Inner::One(_) => 0,
            Inner::Many(all) => size_of::<Vec<T>>() + all.capacity() * size_of::<T>(),
        }
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Inner::None => &[],
            Inner::One(one) => std::slice::from_ref(one),
            Inner::Many(all) => all,
        }
    }
}

impl<T: PartialEq> PartialEq for Few<T> {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl<T: Eq> Eq for Few<T> {}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn does_what_a_list_does(steps in proptest::collection::vec((0u8..8, 0usize..4), 0..60)) {
            let (mut few, mut list) = (Few::new(), Vec::new());
            for (number, (what, at)) in steps.into_iter().enumerate() {
                match what {
                    0..=3 => {
                        few.push(number);
                        list.push(number);
                    }
                    4 if at < list.len() => {
                        few.swap_remove(at);
                        list.swap_remove(at);
                    }
                    5 => {
                        few.remove_first(at);
                        list.drain(..at.min(list.len()));
                    }
                    6 => {
                        few.retain(|n| n % 3 != at);
                        list.retain(|n| n % 3 != at);
                    }
                    7 if at == 0 => {
                        few.clear();
                        list.clear();
                    }
                    _ => {}
                }
                prop_assert_eq!(&few[..], &list[..]);
                prop_assert_eq!(few.heap_bytes() == 0, list.is_empty() || matches!(few.0, Inner::One(_)));
            }
        }
    }
}
