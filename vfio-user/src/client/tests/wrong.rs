//! Servers that answer wrong, late or never.

use super::*;

/// What the client makes of one answer to `ask`.
pub(super) fn wrong<R: std::fmt::Debug>(
    script: impl FnOnce(&mut Fake, Message) + Send + 'static,
    ask: impl FnOnce(&Client) -> Result<R, ClientError>,
) -> ClientError {
    wrong_within(FAR, script, ask)
}

/// The same, of a client that has agreed and then waits for so long.
fn wrong_within<R: std::fmt::Debug>(
    timeout: Duration,
    script: impl FnOnce(&mut Fake, Message) + Send + 'static,
    ask: impl FnOnce(&Client) -> Result<R, ClientError>,
) -> ClientError {
    let (mut client, server) = agreed(FAR, |fake| {
        let message = fake.next();
        script(fake, message);
        // Waits until the client has gone away, so that what it sees is the answer and not the end.
        while fake.reader.wait(&fake.socket, Fake::far()).is_ok() {}
    });
    client.timeout = timeout;
    let start = Instant::now();
    let error = ask(&client).unwrap_err();
    assert!(start.elapsed() < FAR / 2, "{error}");
    lost(&client);
    drop(client);
    server.join().unwrap();
    error
}

pub(super) fn reason(error: &ClientError) -> AnswerError {
    match error {
        ClientError::Answer { reason, .. } => *reason,
        other => panic!("{other}"),
    }
}

pub(super) fn source(error: &ClientError) -> &SocketError {
    match error {
        ClientError::Socket { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[test]
fn answers_to_other_questions_are_refused() {
    let error = wrong(
        |fake, message| {
            fake.send(
                &Header {
                    id: message.header.id.wrapping_add(1),
                    ..message.header.reply(0)
                }
                .encode(),
            )
        },
        Client::reset,
    );
    assert!(matches!(reason(&error), AnswerError::Foreign { .. }));
    let error = wrong(
        |fake, message| {
            fake.send(
                &Header {
                    command: Command::DMA_MAP,
                    ..message.header.reply(0)
                }
                .encode(),
            )
        },
        Client::reset,
    );
    assert!(matches!(reason(&error), AnswerError::Foreign { .. }));
    // Twice the same answer: the second answers the next question.
    let (client, server) = agreed(FAR, |fake| {
        let reset = fake.answer(Command::DEVICE_RESET, &Reply::DeviceReset, &[]);
        fake.send(&reset.header.reply(0).encode());
        let _ = fake.reader.wait(&fake.socket, Fake::far());
    });
    client.reset().unwrap();
    assert!(matches!(
        reason(&client.reset().unwrap_err()),
        AnswerError::Foreign { .. }
    ));
    lost(&client);
    server.join().unwrap();
}

#[test]
fn short_long_and_differing_answers_are_refused() {
    let short = wrong(
        |fake, message| fake.send(&[&message.header.reply(4).encode()[..], &[0; 4]].concat()),
        Client::device_info,
    );
    assert!(
        matches!(
            reason(&short),
            AnswerError::Decode(DecodeError::Length { .. })
        ),
        "{short}"
    );
    let payload = wrong(
        |fake, message| fake.send(&[&message.header.reply(4).encode()[..], &[0; 4]].concat()),
        Client::reset,
    );
    assert!(
        matches!(reason(&payload), AnswerError::Decode(_)),
        "{payload}"
    );

    fn reading(done: RegionAccess, data: &'static [u8]) -> ClientError {
        wrong(
            move |fake, message| {
                let mut out = Vec::new();
                Reply::RegionRead(done, data).encode(&message.header, &mut out);
                fake.send(&out);
            },
            |client| client.region_read(1, 8, &mut [0; 4]),
        )
    }
    let asked = RegionAccess {
        offset: 8,
        region: 1,
        count: 4,
    };
    let fewer = reading(RegionAccess { count: 2, ..asked }, &[1; 2]);
    assert_eq!(reason(&fewer), AnswerError::Differs);
    let more = reading(RegionAccess { count: 8, ..asked }, &[1; 8]);
    assert_eq!(reason(&more), AnswerError::Differs);
    let none = reading(asked, &[]);
    assert!(matches!(reason(&none), AnswerError::Decode(_)));
    for done in [
        RegionAccess { offset: 9, ..asked },
        RegionAccess { region: 0, ..asked },
    ] {
        assert_eq!(reason(&reading(done, &[1; 4])), AnswerError::Differs);
    }
}

#[test]
fn huge_answers_are_refused_before_they_come() {
    let error = wrong(
        |fake, message| fake.send(&message.header.reply(u32::MAX - 16).encode()),
        Client::reset,
    );
    assert!(matches!(source(&error), SocketError::TooLong { .. }));
    let counts = wrong(
        |fake, message| {
            let info = DeviceInfo {
                flags: DeviceFlags::PCI,
                regions: u32::MAX,
                irqs: 5,
            };
            let mut out = Vec::new();
            Reply::DeviceGetInfo(info).encode(&message.header, &mut out);
            fake.send(&out);
        },
        Client::device_info,
    );
    assert_eq!(reason(&counts), AnswerError::Differs);
}

#[test]
fn descriptors_that_nobody_asked_for_are_refused() {
    let with = |count: usize| {
        wrong(
            move |fake, message| {
                let file = File::open("/dev/null").unwrap();
                let reply = message.header.reply(0).encode();
                fake.socket
                    .send_all(&reply, &vec![file.as_fd(); count], Fake::far())
                    .unwrap();
            },
            Client::reset,
        )
    };
    assert_eq!(reason(&with(1)), AnswerError::Descriptors(1));
    assert!(matches!(
        source(&with(100)),
        SocketError::TooManyDescriptors { .. }
    ));
}

#[test]
fn nonsense_silence_and_the_end_are_told_apart() {
    let error = wrong(|fake, _| fake.send(&[0xff; 16]), Client::reset);
    assert!(matches!(source(&error), SocketError::Header(_)));
    let error = wrong_within(SHORT, |_, _| (), Client::reset);
    assert!(matches!(source(&error), SocketError::TimedOut));
    let error = wrong_within(
        SHORT,
        |fake, message| {
            // On a machine that is held up, the client may have gone by now.
            let part = &message.header.reply(0).encode()[..9];
            let _ = fake.socket.send_all(part, &[], Fake::far());
        },
        Client::reset,
    );
    assert!(matches!(source(&error), SocketError::TimedOut));
    let (client, server) = agreed(FAR, |fake| drop(fake.next()));
    assert!(matches!(
        source(&client.reset().unwrap_err()),
        SocketError::Closed
    ));
    server.join().unwrap();
    lost(&client);
}

#[test]
fn a_server_that_only_asks_is_given_up() {
    let error = wrong(
        |fake, _| {
            for id in 0..2000 {
                let request = Header::request(id, Command::DMA_READ, 0, true).encode();
                if fake.socket.send_all(&request, &[], Fake::far()).is_err() {
                    break;
                }
            }
        },
        Client::reset,
    );
    assert!(matches!(reason(&error), AnswerError::Flood));
}
