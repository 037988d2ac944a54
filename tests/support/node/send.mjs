// Sends to the socket argv[2] as argv[3] says: a picture from the file argv[4] under the name argv[5], or a text in chunks.
import {createReadStream} from "node:fs";
import {readFile} from "node:fs/promises";
import {request} from "node:http";
import {Readable} from "node:stream";
import NodeForm from "form-data";
import {Agent, FormData, fetch} from "undici";

const [socketPath, how, file, name] = process.argv.slice(2);
const dispatcher = new Agent({connect: {socketPath}});

function viaHttp(path, headers, body) {
    return new Promise((resolve, reject) => {
        const sent = request({socketPath, path, method: "POST", headers: {Host: "localhost", ...headers}}, (answer) => {
            answer.resume();
            answer.on("end", () => resolve(answer.statusCode));
        });
        sent.on("error", reject);
        body.pipe(sent);
    });
}

const ways = {
    async "undici-form"() {
        const form = new FormData();
        form.append("caption", how);
        form.append("photo", new Blob([await readFile(file)]), name);
        return (await fetch("http://localhost/send_photo", {method: "POST", body: form, dispatcher})).status;
    },
    "form-data"() {
        const form = new NodeForm();
        form.append("caption", how);
        form.append("photo", createReadStream(file), {filename: name});  // its length is not known: in chunks
        return viaHttp("/send_photo", form.getHeaders(), form);
    },
    async "undici-stream"() {
        const body = Readable.from(['{"text": ', `"${how}"}`]);
        return (await fetch("http://localhost/send", {method: "POST", body, duplex: "half", dispatcher})).status;
    },
    "node-stream"() {
        return viaHttp("/send", {"Content-Type": "application/json"}, Readable.from(['{"text": ', `"${how}"}`]));
    },
};

console.log(await ways[how]());
await dispatcher.close();
