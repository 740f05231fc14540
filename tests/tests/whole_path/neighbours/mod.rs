//! Ten tenants side by side on the Docker engine: the router is taken from under their streams, one of them is gone and
//! another takes its place, some turn hostile. Nobody ever reads a byte that is another's.
//!
//! How long one stream is followed: `BEAVER_TEST_STREAM_SECONDS`, 600 for the ten minutes that a long answer may take.

mod following;
mod replaced;
mod side_by_side;

use std::{collections::HashMap, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use beaver_tests::{
    engine,
    house::House,
    people::{Person, by_form},
    provider::FakeProvider,
    stack::{Engine, Stack, fake_provider_program},
    steps::Steps,
    streams::{Stream, Way},
    wait,
    web::Web,
    workspace,
};
use contracts::InstanceId;
use futures_util::future::try_join_all;
use reqwest::Url;

use crate::on_stack;

const TENANTS: usize = 10;
const STREAMS_EACH: usize = 10;
/// How long anything may take that is waited for: far more than it does.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one stream is followed, in seconds, unless the environment says otherwise.
const FOLLOWED_S: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_on_the_docker_engine() {
    if engine::required_or_none("neighbours on the Docker engine").await.is_none() {
        return;
    }
    let rule = FakeProvider::rule(&Stack::prefix_for("neighbours"));
    let settings = [("BEAVER_EGRESS_ALLOW", rule.as_str()), ("BEAVER_SIGN_UPS_PER_HOUR", "0")];
    let stack = Stack::up("neighbours", Engine::Docker, &settings).await.unwrap();
    on_stack("neighbours", stack, run).await;
}

async fn run(steps: &mut Steps, stack: &Stack) -> anyhow::Result<()> {
    let docker = stack.docker().context("a stack on Docker has an engine")?.clone();
    let (program, network) = (fake_provider_program()?, stack.network());
    let provider = FakeProvider::in_container(&docker, stack.prefix(), &network, &program);
    let provider = steps.need("the fake provider runs beside the stack", provider).await?;
    let town = steps.need("ten people sign up and give a provider", Town::new(stack, &provider)).await?;
    steps.check("the router is killed in the middle of 100 streams", town.router_killed(&docker)).await;
    steps.check("asked to end, it lets 100 streams come to their end", town.router_restarted(&docker)).await;
    steps.check("another router takes its place in the middle of 100", town.router_replaced(&docker)).await;
    steps.check("the provider saw nobody's words with another's key", town.keys_and_words_belong_together()).await;
    let seconds = match std::env::var("BEAVER_TEST_STREAM_SECONDS") {
        Ok(text) => text.parse().context("BEAVER_TEST_STREAM_SECONDS is no number")?,
        Err(_) => FOLLOWED_S,
    };
    let followed = town.one_stream_goes_on(Duration::from_secs(seconds));
    steps.check(&format!("streams go on through an operator's rule for {seconds} s"), followed).await;
    let house = House::of(stack).await?;
    steps.check("of one that is gone the next reads nothing", following::nothing_is_left(&town, &house, &docker)).await;
    steps.check("hostile ones take all that they can", side_by_side::rage(&town, &house, &docker)).await;
    steps.check("everybody has their own", town.everybody_is_served()).await;
    Ok(())
}

/// Everybody.
struct Town<'a> {
    stack: &'a Stack,
    provider: &'a FakeProvider,
    tenants: Vec<Tenant>,
}

/// Somebody with a workspace.
struct Tenant {
    person: Person,
    id: InstanceId,
    /// A session in the workspace.
    web: Web,
    /// A key of the workspace.
    key: String,
    /// What nobody else ever says.
    mark: String,
}

impl<'a> Town<'a> {
    async fn new(stack: &'a Stack, provider: &'a FakeProvider) -> anyhow::Result<Self> {
        let people = try_join_all((0..TENANTS).map(|n| async move {
            let person = Person::new(&format!("tenant-{n}"));
            let mut web = by_form::settle(stack, &person, provider.base_url()).await?;
            by_form::enter(&mut web, stack, &person.slug).await?;
            let key = workspace::make_key(&mut web, stack, &person.slug, "streams").await?;
            anyhow::Ok((person, web, key))
        }))
        .await?;
        let instances = House::of(stack).await?.instances().await?;
        let ids: HashMap<_, _> = instances.into_iter().map(|found| (found.slug.to_string(), found.id)).collect();
        let tenants = people.into_iter().map(|(person, web, key)| {
            let id = *ids.get(&person.slug).with_context(|| format!("{} has no instance", person.slug))?;
            let mark = format!("mark-of-{}-{}", person.slug, clock::Entropy::system().token());
            anyhow::Ok(Tenant { person, id, web, key, mark })
        });
        Ok(Self { stack, provider, tenants: tenants.collect::<anyhow::Result<_>>()? })
    }

    /// An instance's door out.
    fn door(&self, id: InstanceId) -> PathBuf {
        self.stack.data_dir().join("run").join(id.to_string()).join("out/egress.sock")
    }

    /// The tenant's n-th way to the provider: in turns through the workspace's address and through its door alone.
    fn way(&self, tenant: &Tenant, n: usize) -> anyhow::Result<Way> {
        if n.is_multiple_of(2) {
            let origin = Url::parse(&self.stack.origin(&tenant.person.slug))?;
            let (host, port) = (origin.host_str().context("a host")?.to_owned(), origin.port().context("a port")?);
            return Ok(Way::Edge { port, host, key: tenant.key.clone() });
        }
        let provider = Url::parse(self.provider.base_url())?;
        Ok(Way::Door {
            socket: self.door(tenant.id),
            provider: provider.authority().to_owned(),
            key: tenant.person.key.clone(),
        })
    }

    /// Opens each tenant's streams, each as soon as it can be.
    async fn open_all(&self) -> anyhow::Result<Vec<Stream>> {
        let each = self.tenants.iter().flat_map(|tenant| (0..STREAMS_EACH).map(move |n| (tenant, n)));
        try_join_all(each.map(|(tenant, n)| async move {
            let (way, mark) = (self.way(tenant, n)?, format!("{}.{n}", tenant.mark));
            wait::until(format!("{} has a stream, {way:?}", tenant.person.slug), PATIENCE, async || {
                Stream::open(&way, &mark).await.map(Some)
            })
            .await
        }))
        .await
    }

    /// Waits until each of these has so many pieces more than it had, and that none has ended.
    async fn go_on(&self, streams: &[Stream], more: usize) -> anyhow::Result<()> {
        let before = streams.iter().map(Stream::so_far).collect::<anyhow::Result<Vec<_>>>()?;
        wait::until("every stream goes on", PATIENCE, async || {
            for (stream, before) in streams.iter().zip(&before) {
                ensure!(!stream.has_ended(), "one has ended");
                if stream.so_far()?.pieces < before.pieces + more {
                    return Ok(None);
                }
            }
            anyhow::Ok(Some(()))
        })
        .await
    }

    /// Waits until all of them have ended; how many came to their good end. Every byte of each was its own.
    async fn ended(&self, streams: &[Stream]) -> anyhow::Result<usize> {
        wait::until("every stream ends", PATIENCE, async || {
            let open = streams.iter().filter(|stream| !stream.has_ended()).count();
            ensure!(open == 0, "{open} are open");
            anyhow::Ok(Some(()))
        })
        .await?;
        self.only_their_own(streams)
    }

    /// That each has what is its own and nothing else; how many came to their good end.
    fn only_their_own(&self, streams: &[Stream]) -> anyhow::Result<usize> {
        let mut whole = 0;
        for stream in streams {
            let so_far = stream.so_far().with_context(|| stream.mark().to_owned())?;
            ensure!(so_far.pieces > 0, "{}: nothing came", stream.mark());
            whole += usize::from(so_far.whole);
            // Also where it broke off in the middle of a piece.
            let others: Vec<String> = self.others(stream.mark());
            ensure!(others.len() == TENANTS - 1, "{} is nobody's", stream.mark());
            if let Some(other) = stream.mentions(&others) {
                anyhow::bail!("{} has {other} in it", stream.mark());
            }
        }
        Ok(whole)
    }

    /// The marks of everybody but the one of this stream.
    fn others(&self, mark: &str) -> Vec<String> {
        self.tenants.iter().map(|tenant| tenant.mark.clone()).filter(|other| !mark.starts_with(other)).collect()
    }

    /// The same provider, the same key and the same words, in every request that came there.
    async fn keys_and_words_belong_together(&self) -> anyhow::Result<()> {
        let mut seen = 0;
        for request in self.provider.record().await?.requests {
            let Some(said) = request.last_said() else { continue };
            let Some(tenant) = self.tenants.iter().find(|tenant| said.contains(&tenant.mark)) else { continue };
            let shown = request.header("authorization");
            ensure!(shown == Some(&format!("Bearer {}", tenant.person.key)), "{said} came with another's key");
            seen += 1;
        }
        ensure!(seen >= 5 * TENANTS * STREAMS_EACH, "only {seen} requests were seen");
        Ok(())
    }

    /// Streams of one tenant go on for so long, and come to their end.
    async fn one_stream_goes_on(&self, long: Duration) -> anyhow::Result<()> {
        let tenant = self.tenants.first().context("somebody")?;
        let ways = [self.way(tenant, 0)?, self.way(tenant, 1)?];
        let mark = &tenant.mark;
        let streams = try_join_all(ways.iter().map(|way| Stream::open(way, mark))).await?;
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < long {
            self.go_on(&streams, 10).await?;
        }
        self.provider.finish().await?;
        let whole = self.ended(&streams).await?;
        ensure!(whole == streams.len(), "{whole} came to a good end");
        let pieces: Vec<usize> =
            streams.iter().map(|stream| stream.so_far().map(|so_far| so_far.pieces)).collect::<anyhow::Result<_>>()?;
        beaver_tests::say(format!("neighbours: {pieces:?} pieces in {:.0?}, each in its order", begun.elapsed()));
        Ok(())
    }

    /// Everybody is answered in their own workspace, and finds there what they said and nothing else.
    async fn everybody_is_served(&self) -> anyhow::Result<()> {
        try_join_all(self.tenants.iter().map(|tenant| async move {
            let (mut web, slug) = (tenant.web.clone(), &tenant.person.slug);
            let said = format!("{} says good night", tenant.mark);
            let (_, answer) = workspace::say(&mut web, self.stack, slug, &said).await?;
            ensure!(answer.text.contains("event: done"), "{slug}: {}", answer.text);
            for (_, messages) in workspace::everything(&mut web, self.stack, slug).await? {
                for message in messages {
                    ensure!(message.content.contains(&tenant.mark), "{slug} has {:?}", message.content);
                }
            }
            Ok(())
        }))
        .await?;
        Ok(())
    }
}
