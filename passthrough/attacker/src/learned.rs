//! What a client must not learn: marks on blocks of others, their names and identifiers.

use crate::client::Client;
use crate::memory::PAGE;

/// The upper bytes of what marks a block. The last byte says whose block it is.
pub const MARK: u32 = 0x5ec7_e700;
/// What makes a random word differ from every mark.
pub const UNLIKE_MARKS: u64 = 1 << 63 | 1 << 31;
/// Whose blocks nobody was granted.
pub const NOBODY: u32 = 0xff;

/// Words that are looked at together.
const TOGETHER: usize = 8;

/// Marks in a client's memory of blocks that are not `own`'s, of so many clients, in sentences.
#[must_use]
pub fn marks(client: &Client, own: u32, clients: u32) -> Vec<String> {
    let mut found = Vec::new();
    let foreign = |half: u32| {
        let whose = half & 0xff;
        half & 0xffff_ff00 == MARK && whose != own && (whose == NOBODY || whose < clients)
    };
    each_word(client, |at, word| {
        if foreign(word as u32) || foreign((word >> 32) as u32) {
            found.push(format!(
                "word {at:#x} of the client's memory holds {word:#x}"
            ));
        }
    });
    found
}

/// Texts in a client's memory that it must not know (none of them empty), in sentences.
#[must_use]
pub fn texts(client: &Client, secrets: &[(usize, &[u8])]) -> Vec<String> {
    let mut heads = [false; 256];
    for (_, secret) in secrets {
        heads[usize::from(secret[0])] = true;
    }
    let memory = &client.memory;
    let mut found = Vec::new();
    each_word(client, |at, word| {
        for (byte, value) in word.to_le_bytes().into_iter().enumerate() {
            if !heads[usize::from(value)] {
                continue;
            }
            for (whose, secret) in secrets {
                let wanted = byte + secret.len();
                let left = memory.len() - at * 8;
                if wanted <= left
                    && memory.read(memory.base + at as u64 * 8, wanted)[byte..] == **secret
                {
                    let page = at * 8 / PAGE;
                    found.push(format!(
                        "page {page} of the client's memory: a name of client {whose}"
                    ));
                }
            }
        }
    });
    found
}

/// Goes through all words that are not 0, most of which are.
fn each_word(client: &Client, mut look: impl FnMut(usize, u64)) {
    let words = client.memory.words();
    for (number, group) in words.chunks(TOGETHER).enumerate() {
        let mut values = [0; TOGETHER];
        let mut any = 0;
        for (value, word) in values.iter_mut().zip(group) {
            *value = word.load(std::sync::atomic::Ordering::Relaxed);
            any |= *value;
        }
        if any == 0 {
            continue;
        }
        for (index, value) in values
            .into_iter()
            .enumerate()
            .filter(|(_, value)| *value != 0)
        {
            look(number * TOGETHER + index, value);
        }
    }
}
