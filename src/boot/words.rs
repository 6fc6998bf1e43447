//! The kernel's command line: `enclave.KEY=VALUE` words are options of `run`. Pure.

use std::collections::BTreeMap;

/// Longest command line that is read, in bytes. Kernels take 2 to 4 KiB.
pub const COMMAND_LINE_BYTES_MAX: u64 = 16 << 10;
/// What our words start with. The kernel takes a word with a dot for a module's and passes it to nobody.
const PREFIX: &str = "enclave.";

/// Our words, by option name; the last of several with the same name counts, as for the kernel's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words(BTreeMap<String, String>);

impl Words {
    /// Finds our words in a command line. `_` and `-` are the same in a name, as for the kernel.
    pub fn parse(line: &str) -> Self {
        let mut words = BTreeMap::new();
        for word in split(line) {
            let Some(ours) = word.strip_prefix(PREFIX) else { continue };
            let (name, value) = ours.split_once('=').unwrap_or((ours, ""));
            words.insert(name.replace('_', "-"), value.to_owned());
        }
        Self(words)
    }

    /// The value of a word.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All of them, as name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// The words up to `--`, whose right side is the init program's own. As in the kernel, a quotation mark
/// starts or ends a stretch in which white space does not separate.
fn split(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        if c == '"' {
            quoted = !quoted;
        } else if c.is_whitespace() && !quoted {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words.into_iter().filter(|word| !word.is_empty()).take_while(|word| word != "--").collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(line: &str) -> Vec<(String, String)> {
        Words::parse(line).iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn our_words_are_found_among_the_kernels_and_the_last_of_a_name_counts() {
        let line = "reboot=k nomodules console=ttyS0 enclave.init=vm random.trust_cpu=on \
                    enclave.host_cid=2 enclave.policy=\"/a b\" enclave.host-cid=7 -- enclave.init=child\n";
        let expected = [("host-cid", "7"), ("init", "vm"), ("policy", "/a b")];
        assert_eq!(found(line), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn nonsense_is_no_word_of_ours() {
        for line in ["", "   \n", "enclave=vm", "\"", "enclave", "= == =x", "a\u{0}b", "--"] {
            assert_eq!(found(line), Vec::new(), "{line:?}");
        }
        assert_eq!(
            found("enclave.  enclave.x"),
            [(String::new(), String::new()), ("x".into(), String::new())]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_and_no_longer_than_it_was(line in ".{0,400}") {
            let bytes: usize = Words::parse(&line).iter().map(|(name, value)| name.len() + value.len()).sum();
            prop_assert!(bytes <= line.len());
        }
    }
}
