//! The labels of a point. Many points of one sample have the same ones, so that they are shared and compact:
//! a copy costs a count, and names that the program knows are not copied at all.

use std::{borrow::Cow, collections::BTreeMap, fmt, ops::Index, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

type Label = (Cow<'static, str>, Arc<str>);

/// Names and values, sorted by name, each name once.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Labels(
    /// None for no labels: one form for one meaning, since comparing is by it.
    Option<Arc<[Label]>>,
);

impl Labels {
    /// Labels whose names are constants and whose values may be shared with others.
    pub fn of<const N: usize>(labels: [(&'static str, &Arc<str>); N]) -> Self {
        Self::sorted(
            labels.into_iter().map(|(name, value)| (Cow::Borrowed(name), Arc::clone(value))).collect(),
        )
    }

    /// The last value wins where a name is there twice.
    fn sorted(mut labels: Vec<Label>) -> Self {
        labels.sort_by(|(a, _), (b, _)| a.cmp(b));
        labels.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                std::mem::swap(later, kept);
            }
            same
        });
        Self((!labels.is_empty()).then(|| labels.into()))
    }

    fn labels(&self) -> &[Label] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.labels().len()
    }

    /// The value of a label.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.labels().iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// Whether there is a label of this name.
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels().iter().map(|(name, value)| (&**name, &**value))
    }

    /// The names, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    /// The values, by name.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(_, value)| value)
    }

    /// Adds a label, or gives it another value. Other copies keep theirs.
    pub fn insert(&mut self, name: String, value: String) {
        let more = [(Cow::Owned(name), value.into())];
        *self = Self::sorted(self.labels().iter().cloned().chain(more).collect());
    }
}

impl Index<&str> for Labels {
    type Output = str;

    /// # Panics
    /// Where there is no such label.
    fn index(&self, name: &str) -> &str {
        self.get(name).expect("invariant: who asks by index knows the label")
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Labels {
    fn from(labels: [(&str, &str); N]) -> Self {
        let owned = |(name, value): (&str, &str)| (Cow::Owned(name.to_owned()), value.into());
        Self::sorted(labels.into_iter().map(owned).collect())
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        labels.into_iter().collect()
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(labels: I) -> Self {
        Self::sorted(labels.into_iter().map(|(name, value)| (Cow::Owned(name), value.into())).collect())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::<String, String>::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_is_changed_leaves_the_others_as_they_are() {
        let first = Labels::from([("plugin", "a")]);
        let mut second = first.clone();
        second.insert("mode".to_owned(), "user".to_owned());
        assert_eq!((first.len(), second.len()), (1, 2));
        assert_eq!(second, Labels::from([("plugin", "a"), ("mode", "user")]));
        second.insert("plugin".to_owned(), "b".to_owned());
        assert_eq!((&second["plugin"], &first["plugin"]), ("b", "a"));
        assert_eq!(format!("{second:?}"), r#"{"mode": "user", "plugin": "b"}"#);
    }

    #[test]
    fn labels_with_constant_names_are_the_same_as_any_others() {
        let value: Arc<str> = "a".into();
        let shared = Labels::of([("plugin", &value), ("k8s.container.name", &value)]);
        assert_eq!(shared, Labels::from([("k8s.container.name", "a"), ("plugin", "a")]));
    }

    #[test]
    fn labels_read_from_json_are_those_that_were_written() {
        for labels in [Labels::default(), Labels::from([("a", "b")])] {
            let text = serde_json::to_string(&labels).unwrap();
            assert_eq!(serde_json::from_str::<Labels>(&text).unwrap(), labels);
        }
    }
}
