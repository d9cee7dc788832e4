use super::*;

#[test]
fn base64_is_the_standard_one() {
    for (text, expect) in
        [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy"), ("\u{ff}~", "w79+")]
    {
        assert_eq!(base64(text.as_bytes()), expect, "{text}");
    }
}
