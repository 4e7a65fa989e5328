//! Message headers: an ordered list of names and binary values, duplicates allowed (a01).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// Headers of a message, in the order in which they were added. Cheap to clone; none costs no allocation.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Headers(Option<Arc<Vec<(String, Bytes)>>>);

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Adds one at the end; an equal name that stands there already stays.
    pub fn append(&mut self, name: impl Into<String>, value: impl Into<Bytes>) {
        let list = self.0.get_or_insert_default();
        Arc::make_mut(list).push((name.into(), value.into()));
    }

    /// Removes all of this name, and says how many there were.
    pub fn remove(&mut self, name: &str) -> usize {
        if !self.contains(name) {
            return 0;
        }
        let Some(list) = &mut self.0 else { return 0 };
        let list = Arc::make_mut(list);
        let before = list.len();
        list.retain(|(n, _)| n != name);
        before - list.len()
    }

    /// The first value of this name; names are compared byte by byte.
    pub fn first(&self, name: &str) -> Option<&Bytes> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// The first value of this name, if it is UTF-8.
    pub fn first_str(&self, name: &str) -> Option<&str> {
        self.first(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Whether there is one of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.first(name).is_some()
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.0.iter().flat_map(|list| list.iter()).map(|(name, value)| (name.as_str(), value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |list| list.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all names and values.
    #[inline]
    pub fn byte_len(&self) -> usize {
        self.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl<N: Into<String>, V: Into<Bytes>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(items: I) -> Self {
        let list: Vec<_> = items.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        if list.is_empty() { Self(None) } else { Self(Some(Arc::new(list))) }
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_duplicates_are_kept() {
        let mut headers = Headers::new();
        headers.append("b", "1");
        headers.append("a", vec![0, 255]);
        headers.append("b", "2");
        let list: Vec<_> = headers.iter().map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
        assert_eq!(
            list,
            [("b".into(), b"1".to_vec()), ("a".into(), vec![0, 255]), ("b".into(), b"2".to_vec())]
        );
        assert_eq!(headers.remove("b"), 2);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut one: Headers = [("a", "1")].into_iter().collect();
        let two = one.clone();
        one.append("b", "2");
        assert_eq!((one.len(), two.len()), (2, 1));
    }
}
