//! The words of `allow`.

use crate::command::{Class, ClassSet};

/// The word of a class, and what it grants, in the order in which they are shown.
const WORDS: [(&str, Class, ClassSet); 13] = [
    ("read", Class::Read, ClassSet::READ),
    ("write", Class::Write, ClassSet::WRITE),
    ("flush", Class::Flush, ClassSet::FLUSH),
    ("compare", Class::Compare, ClassSet::COMPARE),
    ("write-zeroes", Class::WriteZeroes, ClassSet::WRITE_ZEROES),
    ("deallocate", Class::Deallocate, ClassSet::DEALLOCATE),
    ("verify", Class::Verify, ClassSet::VERIFY),
    ("copy", Class::Copy, ClassSet::COPY),
    ("poison", Class::Poison, ClassSet::POISON),
    ("format", Class::Format, ClassSet::FORMAT),
    ("firmware", Class::Firmware, ClassSet::FIRMWARE),
    ("security", Class::Security, ClassSet::SECURITY),
    (
        "namespace-management",
        Class::NamespaceManagement,
        ClassSet::NAMESPACE_MANAGEMENT,
    ),
];

/// The classes that a policy can grant, with their words, in the order in which they are shown.
pub fn grantable() -> impl Iterator<Item = (&'static str, Class)> {
    WORDS.iter().map(|(word, class, _)| (*word, *class))
}

/// What a word of `allow` grants.
pub(super) fn set_of(word: &str) -> Option<ClassSet> {
    let found = WORDS.iter().find(|(name, ..)| *name == word);
    found.map(|(.., set)| *set)
}

/// All words, for an error.
pub(super) fn known() -> String {
    let words: Vec<&str> = WORDS.iter().map(|(word, ..)| *word).collect();
    words.join(", ")
}

/// The words of the classes in a set.
#[must_use]
pub fn words(set: ClassSet) -> Vec<&'static str> {
    let in_set = |(.., bit): &&(&str, Class, ClassSet)| set.contains(*bit);
    WORDS
        .iter()
        .filter(in_set)
        .map(|(word, ..)| *word)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_grants_its_class_and_no_other() {
        let mut all = ClassSet::empty();
        for (word, class) in grantable() {
            let set = set_of(word).unwrap();
            assert!(set.has(class) && set.bits().count_ones() == 1, "{word}");
            assert_eq!(words(set), [word]);
            assert!(!all.intersects(set), "{word}");
            all |= set;
        }
        assert_eq!(all, ClassSet::all(), "a class that no word grants");
        assert!(set_of("Read").is_none() && set_of("sanitize").is_none());
    }
}
