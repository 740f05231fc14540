//! https to a provider: through the tunnel, with the certificate checked.

use std::sync::Arc;

use app_instance::Roots;
use http::StatusCode;
use rustls::{RootCertStore, ServerConfig, pki_types::PrivateKeyDer};
use serde_json::{Value, json};
use token::Purpose;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    fakes::{ODD_ANSWER, fake_egress},
    house::House,
};

/// A house whose provider is behind TLS with a certificate for `name`, which the instance trusts when `trusted`.
async fn house_with_certificate(name: &str, trusted: bool) -> House {
    let mut house = House::build().await;
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let (certificate, key) =
        (made.cert.der().clone(), PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap());
    if trusted {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        house.roots = Roots::These(roots);
    }
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let (acceptor, plain) = (TlsAcceptor::from(Arc::new(config)), house.provider.address);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    std::fs::remove_file(house.path("out/egress.sock")).unwrap();
    fake_egress(&house.path("out"), listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut inner = acceptor.accept(stream).await?;
                let mut outer = TcpStream::connect(plain).await?;
                copy_bidirectional(&mut inner, &mut outer).await
            });
        }
    });
    house.configure(2, Some(("https://provider.example/v1", "odd")));
    house.start().await;
    house
}

async fn test(house: &House) -> Value {
    let body = json!({
        "assertion": house.authz.assertion(Purpose::ProviderTest, "sid", None),
        "provider": { "kind": "openai-compatible", "base_url": "https://provider.example/v1", "model": "fine", "api_key": "k" },
    });
    let response = house.internal(http::Method::POST, "/api/provider/test").json(&body).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response.json().await.unwrap()
}

#[tokio::test]
async fn a_provider_with_a_good_certificate_is_reached() {
    let house = house_with_certificate("provider.example", true).await;
    assert_eq!(test(&house).await, json!({ "outcome": "ok", "status": 200 }));
    let key = house.sign_in().await.new_key().await;
    for _ in 0..2 {
        let request = house.edge(http::Method::POST, "/v1/chat/completions").bearer_auth(&key);
        let answer = request.body(r#"{"model":"odd"}"#).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), ODD_ANSWER);
    }
    assert_eq!(house.provider.last().headers["host"], "provider.example");
}

#[tokio::test]
async fn a_certificate_of_another_name_or_of_nobody_is_not_believed() {
    for (name, trusted) in [("other.example", true), ("provider.example", false)] {
        let house = house_with_certificate(name, trusted).await;
        assert_eq!(test(&house).await["outcome"], "unreachable", "{name} {trusted}");
        assert!(house.provider.sent.lock().unwrap().is_empty(), "nothing was sent to it");
    }
}
