// OpenAI's own client for JavaScript: models, chat whole, streamed and helped, completions, embeddings, files.
import OpenAI, { toFile } from "openai";

const env = process.env;
const client = new OpenAI({ baseURL: env.GPT_BUILDER_URL, apiKey: env.GPT_BUILDER_KEY, maxRetries: 0 });
const trainer = new OpenAI({ baseURL: env.GPT_BUILDER_URL, apiKey: env.GPT_BUILDER_TRAIN_KEY, maxRetries: 0 });
const model = env.GPT_BUILDER_MODEL;
const greedy = { model, messages: [{ role: "user", content: "Where is my card?" }], max_tokens: 8, temperature: 0 };

async function call(name, work) {
  let told = { call: name, ok: true, note: "" };
  try {
    await work();
  } catch (error) {
    told = { call: name, ok: false, note: String(error).slice(0, 300) };
  }
  console.log("SAID " + JSON.stringify(told));
}
function holds(condition, what) {
  if (!condition) throw new Error(what);
}

let text = "";
await call("models", async () => {
  const ids = [];
  for await (const one of client.models.list()) ids.push(one.id);
  holds(ids.includes(model), "the model is listed");
  holds((await client.models.retrieve(`${model}:step-120`)).id, "a checkpoint is found");
});
await call("chat", async () => {
  const answer = await client.chat.completions.create(greedy);
  text = answer.choices[0].message.content;
  holds(text && answer.usage.total_tokens, "an answer with its counts");
});
await call("chat, streamed", async () => {
  let said = "";
  for await (const one of await client.chat.completions.create({ ...greedy, stream: true }))
    said += one.choices[0]?.delta?.content ?? "";
  holds(said === text, "the same in pieces");
});
await call("chat, stream helper", async () => {
  const final = await client.chat.completions.stream(greedy).finalChatCompletion();
  holds(final.choices[0].message.content === text, "the same at the end");
});
await call("completions, echo and logprobs", async () => {
  const told = await client.completions.create({ model, prompt: "Where is", max_tokens: 1, echo: true, logprobs: 1 });
  holds(told.choices[0].logprobs.token_logprobs[0] === null, "the first token has no probability");
});
await call("embeddings", async () => {
  const found = await client.embeddings.create({ model, input: "Where is my card?" });
  holds(found.data[0].embedding.length > 8, "a vector");
});
await call("files", async () => {
  const row = { messages: [{ role: "user", content: "Hi" }, { role: "assistant", content: "Hello." }] };
  const file = await toFile(Buffer.from(JSON.stringify(row)), "one.jsonl");
  const made = await trainer.files.create({ file, purpose: "fine-tune" });
  holds((await trainer.files.retrieve(made.id)).filename === "one.jsonl", "it is there");
  holds((await trainer.files.delete(made.id)).deleted, "deleted");
});
