// Reads paths of messages on standard input; prints for each what mailparser and postal-mime show as attachments, a
// line for each reader: the reader, and for each attachment its name and content as NAME:CONTENT in hexadecimal.
import { readFileSync } from "node:fs";
import { simpleParser } from "mailparser";
import PostalMime from "postal-mime";

const hex = (value) => Buffer.from(value ?? "").toString("hex");
const readers = {
  mailparser: async (raw) => (await simpleParser(raw)).attachments.map((one) => [one.filename, one.content]),
  "postal-mime": async (raw) => (await PostalMime.parse(raw)).attachments.map((one) => [one.filename, one.content]),
};

for (const path of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const raw = readFileSync(path);
  for (const [reader, read] of Object.entries(readers)) {
    let found = [];
    try {
      found = await read(raw);
    } catch {
      // a reader that gives up shows nothing
    }
    console.log(reader, ...found.map(([name, content]) => `${hex(name)}:${hex(content)}`));
  }
}
