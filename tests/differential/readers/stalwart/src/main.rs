// Reads paths of messages on standard input; prints for each what mail-parser shows as attachments: the reader, and for
// each attachment its name and content as NAME:CONTENT in hexadecimal.
use mail_parser::{Message, MessageParser, MimeHeaders, PartType};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shown(message: &Message, depth: usize, found: &mut Vec<String>) {
    for part in &message.parts {
        if let PartType::Message(inner) = &part.body {
            if depth < 10 {
                shown(inner, depth + 1, found);
            }
        } else if let Some(name) = part.attachment_name() {
            found.push(format!("{}:{}", hex(name.as_bytes()), hex(part.contents())));
        }
    }
}

fn main() {
    for path in std::io::stdin().lines().map_while(Result::ok) {
        let raw = std::fs::read(&path).expect("a message that can be read");
        let mut found = vec![];
        if let Some(message) = MessageParser::default().parse(&raw) {
            shown(&message, 0, &mut found);
        }
        println!("stalwart {}", found.join(" "));
    }
}
