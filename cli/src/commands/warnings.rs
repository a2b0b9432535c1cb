//! Warnings about a policy: what is said of several clients is said once.

/// Clients that are named before the others are only counted.
const NAMED: usize = 4;

/// Whom each text is about, as its beginning (empty where it is about nobody alone), and the text; in the order in which the texts came first.
pub(super) fn merged<'a>(
    warnings: impl IntoIterator<Item = (Option<&'a str>, Option<u32>, &'a str)>,
) -> Vec<(String, &'a str)> {
    let mut texts: Vec<(Vec<String>, &str)> = Vec::new();
    for (client, nsid, text) in warnings {
        let about = match (client, nsid) {
            (Some(client), Some(nsid)) => Some(format!("{client} (namespace {nsid})")),
            (Some(client), None) => Some(client.to_owned()),
            _ => None,
        };
        match texts.iter_mut().find(|(_, known)| *known == text) {
            Some((abouts, _)) => abouts.extend(about),
            None => texts.push((about.into_iter().collect(), text)),
        }
    }
    let beginning = |abouts: Vec<String>| {
        let named = abouts
            .get(..NAMED.min(abouts.len()))
            .unwrap_or_default()
            .join(", ");
        match abouts.len().saturating_sub(NAMED) {
            _ if abouts.is_empty() => String::new(),
            0 => format!("{named}: "),
            more => format!("{named} and {more} more: "),
        }
    };
    texts
        .into_iter()
        .map(|(abouts, text)| (beginning(abouts), text))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_several_is_said_once() {
        let names = ["a", "b", "c", "d", "e", "f"];
        let mut warnings: Vec<_> = names
            .iter()
            .map(|name| (Some(*name), None, "lent"))
            .collect();
        warnings.insert(1, (None, None, "all"));
        warnings.push((Some("a"), Some(7), "shared"));
        let told: Vec<_> = merged(warnings)
            .into_iter()
            .map(|(about, text)| about + text)
            .collect();
        assert_eq!(
            told,
            [
                "a, b, c, d and 2 more: lent",
                "all",
                "a (namespace 7): shared"
            ]
        );
        assert!(merged([]).is_empty());
    }
}
