use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use hickory_resolver::{
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::{
        op::{Message, MessageType, ResponseCode},
        rr::{RData, Record, RecordType},
    },
};
use tokio::{net::UdpSocket, time::timeout};

use super::*;

/// A name server on loopback; how often it was asked for each name and type.
#[derive(Clone)]
struct Server {
    asked: Arc<Mutex<HashMap<(String, RecordType), usize>>>,
    port: u16,
}

impl Server {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let this = Self { asked: Arc::default(), port: socket.local_addr().unwrap().port() };
        let of_task = this.clone();
        tokio::spawn(async move {
            let mut datagram = [0; 4096];
            loop {
                let (n, from) = socket.recv_from(&mut datagram).await.unwrap();
                if let Some(answer) = of_task.answer(Message::from_vec(&datagram[..n]).unwrap()) {
                    socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
                }
            }
        });
        this
    }

    fn answer(&self, mut message: Message) -> Option<Message> {
        let query = message.queries[0].clone();
        let (name, kind) = (query.name().to_string(), query.query_type());
        *self.asked.lock().unwrap().entry((name.clone(), kind)).or_default() += 1;
        message.metadata.message_type = MessageType::Response;
        message.metadata.recursion_available = true;
        let ttl = match &*name {
            "long.test." => 300,
            "none.test." => 0,
            "slow.test." => return None,
            "half.test." if kind == RecordType::AAAA => return None,
            "half.test." => 300,
            "lost.test." if kind == RecordType::A => return None,
            "lost.test." => return Some(message),
            "broken.test." => {
                message.metadata.response_code = ResponseCode::ServFail;
                return Some(message);
            }
            _ => {
                message.metadata.response_code = ResponseCode::NXDomain;
                return Some(message);
            }
        };
        let data = match kind {
            RecordType::A => RData::A(Ipv4Addr::new(93, 184, 216, 34).into()),
            RecordType::AAAA => RData::AAAA("2606:4700::1".parse::<Ipv6Addr>().unwrap().into()),
            other => panic!("asked for {other}"),
        };
        message.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
        Some(message)
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|((asked, _), _)| asked == name).map(|(_, times)| times).sum()
    }

    fn resolver(&self) -> TokioResolver {
        let mut connection = ConnectionConfig::udp();
        connection.port = self.port;
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
        let config = ResolverConfig::from_name_servers(vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        set(builder.options_mut());
        builder.build().unwrap()
    }
}

#[tokio::test]
async fn both_families_come_and_are_kept_as_long_as_they_say() {
    let server = Server::start().await;
    let resolver = server.resolver();
    let both: [IpAddr; 2] = ["93.184.216.34".parse().unwrap(), "2606:4700::1".parse().unwrap()];
    for _ in 0..3 {
        assert_eq!(lookup(resolver.clone(), "long.test").await.unwrap(), both);
        assert_eq!(lookup(resolver.clone(), "none.test").await.unwrap(), both);
    }
    assert_eq!(server.asked("long.test."), 2, "once for each family");
    assert_eq!(server.asked("none.test."), 6, "what says that it must not be kept is not");
}

#[tokio::test]
async fn that_there_is_none_is_told_apart_from_no_answer() {
    let server = Server::start().await;
    for (name, kind) in [
        ("nowhere.test", io::ErrorKind::NotFound),
        ("broken.test", io::ErrorKind::Other),
        // Of one family it is known that there is none; of the other, nothing.
        ("lost.test", io::ErrorKind::Other),
    ] {
        assert_eq!(lookup(server.resolver(), name).await.unwrap_err().kind(), kind, "{name}");
    }
}

#[tokio::test]
async fn a_family_that_is_never_answered_does_not_hide_the_other() {
    let server = Server::start().await;
    let found = lookup(server.resolver(), "half.test").await.unwrap();
    assert_eq!(found, ["93.184.216.34".parse::<IpAddr>().unwrap()]);
    let longest = ANSWER * u32::try_from(REPEATED + 1).unwrap();
    assert!(longest < super::super::dial::RESOLVE, "a dial gives up before the other family is given up");
}

#[tokio::test]
async fn a_slow_name_holds_no_other_up() {
    let server = Server::start().await;
    let resolver = server.resolver();
    let slow: Vec<_> = (0..200)
        .map(|_| {
            tokio::spawn({
                let resolver = resolver.clone();
                async move { lookup(resolver, "slow.test").await }
            })
        })
        .collect();
    timeout(ANSWER, lookup(resolver.clone(), "long.test")).await.expect("at once").unwrap();
    assert!(slow.iter().all(|asking| !asking.is_finished()));
    slow.iter().for_each(|asking| asking.abort());
}

#[tokio::test]
async fn names_of_this_host_are_asked_of_nobody() {
    let resolver = Resolver::default();
    for name in ["localhost", "alice.localhost"] {
        assert!(resolver.resolve(name).await.unwrap().iter().all(IpAddr::is_loopback), "{name}");
    }
    assert!(resolver.current.lock().unwrap().is_none());
}
