//! A record as a row of the table.

use serde_json::Value;

use super::text::{duration, printable};

/// What stands above the rows.
pub(super) const HEADER: &str =
    "Time                         Client        Who                     Verdict   Latency   What";

/// A record as one line of printable ASCII. Whatever is missing in it, or of another type than it should be, is shown as a hyphen.
pub(super) fn row(value: &Value) -> String {
    let (verdict, latency, what) = match value["kind"].as_str() {
        Some("command") => (word(value, "verdict"), latency(value), command(value)),
        Some("event") => ("event".to_owned(), "-".to_owned(), event(value)),
        Some("counted") => ("counted".to_owned(), "-".to_owned(), counted(value)),
        Some("dropped") => ("dropped".to_owned(), "-".to_owned(), dropped(value)),
        _ => (
            "-".to_owned(),
            "-".to_owned(),
            "unknown kind of record".to_owned(),
        ),
    };
    format!(
        "{:<27}  {:<12}  {:<22}  {:<8}  {:<8}  {what}",
        word(value, "time"),
        word(value, "client"),
        who(value),
        verdict,
        latency,
    )
}

/// A string, made harmless.
fn word(value: &Value, key: &str) -> String {
    match value[key].as_str() {
        Some(text) if !text.is_empty() => printable(text),
        _ => "-".to_owned(),
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn who(value: &Value) -> String {
    match (value["uid"].as_u64(), value["pid"].as_i64()) {
        (Some(uid), Some(pid)) => format!("uid {uid}, pid {pid}"),
        (None, Some(pid)) => format!("pid {pid}"),
        _ => "-".to_owned(),
    }
}

fn latency(value: &Value) -> String {
    value["latency_ns"]
        .as_u64()
        .map_or_else(|| "-".to_owned(), duration)
}

fn command(value: &Value) -> String {
    let mut what = word(value, "words");
    if value["reason"].is_string() {
        what.push_str(&format!(
            " -- {}: {}",
            word(value, "reason"),
            word(value, "reason_text")
        ));
    }
    let status = &value["status"];
    let (sct, sc) = (number(status, "sct"), number(status, "sc"));
    if status.is_null() && value["ring"] == "operators" {
        what.push_str(" [the controller has not said how it ended]");
    }
    if status.is_object() && (sct, sc) != (0, 0) {
        what.push_str(&format!(" [{} ({sct:x}/{sc:02x}h)]", word(status, "name")));
    }
    what
}

/// An event with all that it tells.
fn event(value: &Value) -> String {
    let mut what = word(value, "event");
    let Some(fields) = value.as_object() else {
        return what;
    };
    // These have columns, or say nothing to people.
    let known = [
        "seq",
        "time",
        "kind",
        "client",
        "ring",
        "number",
        "uid",
        "gid",
        "pid",
        "start_time",
        "event",
    ];
    let mut gap = ": ";
    for (key, field) in fields {
        if known.contains(&key.as_str()) {
            continue;
        }
        let field = match field {
            Value::String(text) => printable(text),
            other => printable(&other.to_string()),
        };
        what.push_str(gap);
        what.push_str(&format!("{} {field}", printable(key)));
        gap = ", ";
    }
    what
}

fn counted(value: &Value) -> String {
    let mut parts = Vec::new();
    for (noun, bytes) in [("reads", "read_bytes"), ("writes", "write_bytes")] {
        let count = number(value, noun);
        if count > 0 {
            parts.push(format!("{count} {noun} ({} bytes)", number(value, bytes)));
        }
    }
    for (class, count) in value["others"].as_object().into_iter().flatten() {
        let count = count.as_u64().unwrap_or(0);
        parts.push(format!("{count} of the class {}", printable(class)));
    }
    for (key, noun) in [
        ("failed", "of these failed"),
        ("answered", "answered by the virtual controller"),
        ("connections", "events of connections"),
    ] {
        let count = number(value, key);
        if count > 0 {
            parts.push(format!("{count} {noun}"));
        }
    }
    for (key, verb) in [("observed", "observed for"), ("refused", "refused for")] {
        for (reason, count) in value[key].as_object().into_iter().flatten() {
            let count = count.as_u64().unwrap_or(0);
            parts.push(format!("{count} {verb} {}", printable(reason)));
        }
    }
    format!("without a record: {}", parts.join(", "))
}

fn dropped(value: &Value) -> String {
    let (first, records) = (number(value, "first"), number(value, "records"));
    format!(
        "{records} records of the ring of {} found no room, the first is number {first}",
        word(value, "ring")
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_is_told_with_its_reason_and_status() {
        let row = row(&json!({
            "seq": 7, "time": "2026-01-02T03:04:05.678901Z", "kind": "command", "client": "vm-a", "uid": 1000, "pid": 42,
            "words": "Write: write blocks 8 to 15 of namespace 1", "verdict": "refused", "reason": "class-not-granted",
            "reason_text": "commands of this class are not granted", "latency_ns": null,
            "status": {"sct": 0, "sc": 0x15, "dnr": true, "name": "Operation Denied"},
        }));
        assert_eq!(
            row,
            "2026-01-02T03:04:05.678901Z  vm-a          uid 1000, pid 42        refused   -         \
             Write: write blocks 8 to 15 of namespace 1 -- class-not-granted: commands of this class are not granted [Operation Denied (0/15h)]"
        );
        let columns = |text: &str| text.find("  W").unwrap();
        assert_eq!(HEADER.rfind("What"), row.find("Write:"));
        assert_eq!(columns(HEADER), HEADER.find("  Who").unwrap());
    }

    #[test]
    fn an_operators_command_without_an_end_is_told_as_that() {
        let mut value = json!({"kind": "command", "ring": "operators", "words": "Format NVM: erase", "status": null});
        assert!(
            row(&value).ends_with("Format NVM: erase [the controller has not said how it ended]")
        );
        // What the virtual controller answers has no status either.
        value["ring"] = "commands".into();
        assert!(row(&value).ends_with("Format NVM: erase"));
    }

    #[test]
    fn counts_and_drops_are_told_in_words() {
        let counted = row(
            &json!({"kind": "counted", "reads": 3, "read_bytes": 1536, "others": {"flush": 5}, "refused": {"out-of-range": 2}}),
        );
        assert!(counted.ends_with(
            "without a record: 3 reads (1536 bytes), 5 of the class flush, 2 refused for out-of-range"
        ));
        let dropped =
            row(&json!({"kind": "dropped", "ring": "commands", "first": 5, "records": 2}));
        assert!(
            dropped.ends_with(
                "2 records of the ring of commands found no room, the first is number 5"
            )
        );
    }

    fn hostile() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<String>().prop_map(Value::from),
            Just(Value::from("\u{1b}[2J\u{202e}\u{9b}\r\n\0")),
            any::<u64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(Value::Null),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            let map = prop::collection::vec((any::<String>(), inner.clone()), 0..5);
            prop_oneof![
                prop::collection::vec(inner, 0..5).prop_map(Value::from),
                map.prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn a_hostile_record_is_one_line_of_printable_ascii(
            kind in prop::sample::select(vec!["command", "event", "counted", "dropped", "other"]),
            fields in prop::collection::vec(hostile(), 18),
            key in any::<String>(),
        ) {
            let names = [
                "time", "client", "uid", "pid", "words", "verdict", "reason", "reason_text", "status", "latency_ns", "event", "refused",
                "reads", "ring", "first", "others", "observed",
            ];
            let mut value = json!({});
            let mut fields = fields.into_iter();
            for name in names {
                value[name] = fields.next().unwrap();
            }
            value[key.as_str()] = fields.next().unwrap();
            value["kind"] = kind.into();
            let row = row(&value);
            prop_assert!(row.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{row:?}");
        }
    }
}
