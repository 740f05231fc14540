use http::Request;

use super::*;

#[test]
fn negotiation() {
    for (cookie, header, expected) in [
        (None, None, Locale::En),
        (None, Some(""), Locale::En),
        (None, Some("zh-CN,zh;q=0.9,en;q=0.8"), Locale::ZhCn),
        (None, Some("zh"), Locale::ZhCn),
        (None, Some("ZH-hans"), Locale::ZhCn),
        (None, Some("zh-Hans-CN"), Locale::ZhCn),
        (None, Some("zh-TW"), Locale::ZhCn),
        (None, Some("en-GB"), Locale::En),
        (None, Some("en-US,zh;q=0.9"), Locale::En),
        (None, Some("en;q=0.5, zh;q=0.7"), Locale::ZhCn),
        (None, Some("zh;q=0.5, en;q=0.7"), Locale::En),
        (None, Some("zh;q=0.5, en;q=0.5"), Locale::ZhCn),
        (None, Some("fr-FR, de;q=0.9"), Locale::En),
        (None, Some("fr, zh;q=0.1"), Locale::ZhCn),
        (None, Some("zh;q=0"), Locale::En),
        (None, Some("zh;q=0, en;q=0.1"), Locale::En),
        (None, Some("*"), Locale::En),
        (None, Some("*;q=0.1, zh;q=0.2"), Locale::ZhCn),
        // A malformed weight spoils its entry, not the header.
        (None, Some("zh;q=high, en;q=0.1"), Locale::En),
        (None, Some("en;q=NaN, zh;q=0.1"), Locale::ZhCn),
        (None, Some("en;q=-1, zh;q=0.1"), Locale::ZhCn),
        (None, Some("en;q=2, zh;q=0.1"), Locale::ZhCn),
        (None, Some(";;,,=;q=,zh-"), Locale::ZhCn),
        (None, Some("zhx, enx"), Locale::En),
        // A choice goes before the header, but only a choice that exists.
        (Some("en"), Some("zh"), Locale::En),
        (Some("zh-CN"), Some("en"), Locale::ZhCn),
        (Some("zh-CN"), None, Locale::ZhCn),
        (Some("fr"), Some("zh"), Locale::ZhCn),
        (Some("<script>"), None, Locale::En),
    ] {
        assert_eq!(Locale::negotiate(cookie, header), expected, "cookie {cookie:?}, header {header:?}");
    }
}

#[test]
fn codes_names_and_json_agree() {
    for locale in Locale::ALL {
        assert_eq!(Locale::from_code(locale.code()), Some(locale));
        assert_eq!(locale.to_string(), locale.code());
        assert_eq!(serde_json::to_string(&locale).expect("JSON"), format!("{:?}", locale.code()));
        assert!(locale.html_lang().starts_with(&locale.code()[..2]));
        assert!(!locale.name().is_empty());
    }
    assert_eq!((Locale::default(), Locale::from_code("ZH-cn")), (Locale::En, None));
}

#[test]
fn the_cookie_is_secure_only_where_it_can_be() {
    assert_eq!(
        Locale::ZhCn.set_cookie(true),
        "beaver_lang=zh-CN; Path=/; Max-Age=31536000; SameSite=Lax; HttpOnly; Secure"
    );
    assert_eq!(Locale::En.set_cookie(false), "beaver_lang=en; Path=/; Max-Age=31536000; SameSite=Lax; HttpOnly");
}

async fn extracted(headers: &[(&str, &[u8])]) -> Locale {
    let mut request = Request::builder();
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (mut parts, ()) = request.body(()).expect("a request").into_parts();
    let Ok(locale) = Locale::from_request_parts(&mut parts, &()).await;
    locale
}

#[tokio::test]
async fn the_extractor_reads_every_line_and_never_fails() {
    assert_eq!(extracted(&[]).await, Locale::En);
    assert_eq!(extracted(&[("accept-language", b"zh-TW")]).await, Locale::ZhCn);
    assert_eq!(extracted(&[("accept-language", b"fr"), ("accept-language", b"zh;q=0.2")]).await, Locale::ZhCn);
    assert_eq!(
        extracted(&[("cookie", b"a=1; beaver_lang=zh-CN; b=2"), ("accept-language", b"en")]).await,
        Locale::ZhCn
    );
    assert_eq!(extracted(&[("cookie", b"a=1"), ("cookie", b"beaver_lang=zh-CN")]).await, Locale::ZhCn);
    assert_eq!(extracted(&[("cookie", b"beaver_lang=nope; beaver_lang=zh-CN")]).await, Locale::ZhCn);
    assert_eq!(extracted(&[("cookie", b"xbeaver_lang=zh-CN")]).await, Locale::En);
    assert_eq!(extracted(&[("cookie", b"\xff\xfe"), ("accept-language", b"\xff, zh")]).await, Locale::En);
}
