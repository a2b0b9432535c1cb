//! The SMART / Health Information log page (Base Specification 2.0, figure 207).

use std::fmt::Write as _;

use super::{Bits, Field, Item, Object, d, explain_bits};
use crate::size::decimal;

/// Size of the log page in bytes.
pub const SIZE: usize = 512;
const SENSORS: usize = 200;
const SENSOR_COUNT: usize = 8;
/// A data unit is a thousand blocks of 512 bytes.
const DATA_UNIT: u128 = 512_000;
const KELVIN: i32 = 273;

const CRITICAL_WARNING: Field = Field::hex("critical_warning", 0, 1);
const WARNINGS: &[(Bits, &str)] = &[
    (
        Bits {
            high: 0,
            low: 0,
            name: "Available Spare",
        },
        "available_spare",
    ),
    (
        Bits {
            high: 1,
            low: 1,
            name: "Temperature Threshold",
        },
        "temp_threshold",
    ),
    (
        Bits {
            high: 2,
            low: 2,
            name: "NVM Subsystem Reliability",
        },
        "reliability_degraded",
    ),
    (
        Bits {
            high: 3,
            low: 3,
            name: "Read-Only",
        },
        "ro",
    ),
    (
        Bits {
            high: 4,
            low: 4,
            name: "Volatile Memory Backup Failed",
        },
        "vmbu_failed",
    ),
    (
        Bits {
            high: 5,
            low: 5,
            name: "Persistent Memory Region Read-Only",
        },
        "pmr_ro",
    ),
];

const BEFORE_SENSORS: &[Field] = &[
    d("temperature", 1, 2),
    d("avail_spare", 3, 1),
    d("spare_thresh", 4, 1),
    d("percent_used", 5, 1),
    d("endurance_grp_critical_warning_summary", 6, 1),
    d("data_units_read", 32, 16),
    d("data_units_written", 48, 16),
    d("host_read_commands", 64, 16),
    d("host_write_commands", 80, 16),
    d("controller_busy_time", 96, 16),
    d("power_cycles", 112, 16),
    d("power_on_hours", 128, 16),
    d("unsafe_shutdowns", 144, 16),
    d("media_errors", 160, 16),
    d("num_err_log_entries", 176, 16),
    d("warning_temp_time", 192, 4),
    d("critical_comp_time", 196, 4),
];

const AFTER_SENSORS: &[Field] = &[
    d("thm_temp1_trans_count", 216, 4),
    d("thm_temp2_trans_count", 220, 4),
    d("thm_temp1_total_time", 224, 4),
    d("thm_temp2_total_time", 228, 4),
];

/// The sensors that there are: a temperature of 0 means none.
fn sensors(data: &[u8]) -> impl Iterator<Item = (usize, u128)> {
    (0..SENSOR_COUNT)
        .map(|index| {
            (
                index + 1,
                Field::decimal("", SENSORS + index * 2, 2).number(data),
            )
        })
        .filter(|(_, kelvin)| *kelvin != 0)
}

/// nvme-cli's JSON; `explain` makes an object of the critical warning, as `-H` does there.
#[must_use]
pub fn json(data: &[u8], explain: bool) -> Object {
    let warning = CRITICAL_WARNING.number(data);
    let mut object = Object::default();
    if explain {
        let mut bits = Object::default();
        bits.push("value", Item::Number(warning));
        for (place, key) in WARNINGS {
            bits.push(*key, Item::Number(warning >> place.low & 1));
        }
        object.push(CRITICAL_WARNING.key, Item::Object(bits));
    } else {
        object.push(CRITICAL_WARNING.key, Item::Number(warning));
    }
    object.extend(Object::of(data, BEFORE_SENSORS));
    for (index, kelvin) in sensors(data) {
        object.push(format!("temperature_sensor_{index}"), Item::Number(kelvin));
    }
    object.extend(Object::of(data, AFTER_SENSORS));
    object
}

/// Text for people.
#[must_use]
pub fn text(address: &str, nsid: u32, data: &[u8], explain: bool) -> String {
    let mut out = format!("Smart Log for NVME device:{address} namespace-id:{nsid:x}\n");
    let mut line = |key: &str, value: String| {
        let _ = writeln!(out, "{key:<38} : {value}");
    };
    let warning = CRITICAL_WARNING.number(data);
    line(CRITICAL_WARNING.key, format!("{warning:#x}"));
    if explain {
        let mut bits = String::new();
        let places: Vec<Bits> = WARNINGS.iter().map(|(place, _)| *place).collect();
        explain_bits(&mut bits, warning, &places);
        out.push_str(&bits);
    }
    let mut line = |key: &str, value: String| {
        let _ = writeln!(out, "{key:<38} : {value}");
    };
    for field in BEFORE_SENSORS {
        let number = field.number(data);
        let value = match field.key {
            "temperature" => temperature(number),
            "avail_spare" | "spare_thresh" | "percent_used" => format!("{number}%"),
            "data_units_read" | "data_units_written" => {
                format!("{number} ({})", decimal(number.saturating_mul(DATA_UNIT)))
            }
            "endurance_grp_critical_warning_summary" => format!("{number:#x}"),
            _ => number.to_string(),
        };
        line(field.key, value);
    }
    for (index, kelvin) in sensors(data) {
        line(&format!("temperature_sensor_{index}"), temperature(kelvin));
    }
    for field in AFTER_SENSORS {
        line(field.key, field.number(data).to_string());
    }
    out
}

fn temperature(kelvin: u128) -> String {
    let celsius = i32::try_from(kelvin)
        .unwrap_or(i32::MAX)
        .saturating_sub(KELVIN);
    format!("{celsius} °C ({kelvin} K)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut data = vec![0; SIZE];
        data[0] = 0x0a;
        data[1..3].copy_from_slice(&323_u16.to_le_bytes());
        data[3] = 100;
        data[32] = 2;
        data[SENSORS + 2..SENSORS + 4].copy_from_slice(&300_u16.to_le_bytes());
        data
    }

    #[test]
    fn json_has_the_keys_of_nvme_cli() {
        let value = serde_json::to_value(json(&sample(), false)).unwrap();
        let keys: Vec<_> = value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            keys,
            [
                "critical_warning",
                "temperature",
                "avail_spare",
                "spare_thresh",
                "percent_used",
                "endurance_grp_critical_warning_summary",
                "data_units_read",
                "data_units_written",
                "host_read_commands",
                "host_write_commands",
                "controller_busy_time",
                "power_cycles",
                "power_on_hours",
                "unsafe_shutdowns",
                "media_errors",
                "num_err_log_entries",
                "warning_temp_time",
                "critical_comp_time",
                "temperature_sensor_2",
                "thm_temp1_trans_count",
                "thm_temp2_trans_count",
                "thm_temp1_total_time",
                "thm_temp2_total_time",
            ]
        );
        assert_eq!(
            (
                &value["critical_warning"],
                &value["temperature"],
                &value["temperature_sensor_2"]
            ),
            (&10.into(), &323.into(), &300.into())
        );
        let human = serde_json::to_value(json(&sample(), true)).unwrap();
        assert_eq!(human["critical_warning"]["temp_threshold"], 1);
        assert_eq!(human["critical_warning"]["ro"], 1);
        assert_eq!(human["critical_warning"]["available_spare"], 0);
    }

    #[test]
    fn text_is_in_celsius_and_bytes() {
        let text = text("emulated", u32::MAX, &sample(), true);
        for expected in [
            "namespace-id:ffffffff",
            ": 50 °C (323 K)",
            ": 2 (1.02MB)",
            "0x1\tRead-Only",
            "temperature_sensor_2",
            ": 100%",
        ] {
            assert!(text.contains(expected), "{expected} not in:\n{text}");
        }
    }

    #[test]
    fn absurd_values_do_not_overflow() {
        assert!(
            text("x", 1, &[0xff; SIZE], true).contains("340282366920938463463374607431768211455")
        );
        assert!(!text("x", 1, &[], true).is_empty());
    }
}
