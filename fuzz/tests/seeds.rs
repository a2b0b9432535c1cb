//! Every seed, without the engine: what the fuzzers have reached once stays reached, and stays right.

use std::fs;
use std::path::Path;

use nvme_vfio_fuzz::FUZZERS;

fn bytes(line: &str) -> Vec<u8> {
    let digits: Vec<u8> = line
        .chars()
        .map(|digit| digit.to_digit(16).expect("a hexadecimal digit") as u8)
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

#[test]
fn seeds_are_clean() {
    for (name, fuzzer) in FUZZERS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("seeds/{name}.hex"));
        let text = fs::read_to_string(path).unwrap();
        let mut count = 0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            println!("{name}: {line}");
            // Inputs that failed once begin so.
            fuzzer(&bytes(line.trim_start_matches('!')));
            count += 1;
        }
        assert!(count > 10, "{name} has {count} seeds");
    }
}
