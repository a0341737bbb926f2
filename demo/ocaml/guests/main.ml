(* An HTTP server, one request a connection: `GET /NAME`. *)

(* Taken once, when the program starts: a table of closures, as many programs have one. *)
let routes = [ ("GET", Pages.home) ]
let stop = ref false
let served = ref 0

let respond client text =
  let header = "HTTP/1.0 200 OK\r\nContent-Length: " ^ string_of_int (String.length text) in
  let answer = Bytes.of_string (header ^ "\r\n\r\n" ^ text) in
  ignore (Unix.write client answer 0 (Bytes.length answer))

let serve client =
  let request = Bytes.create 4096 in
  let size = Unix.read client request 0 4096 in
  (match String.split_on_char ' ' (Bytes.sub_string request 0 size) with
  | verb :: path :: _ when List.mem_assoc verb routes ->
      let name = String.sub path 1 (String.length path - 1) in
      respond client (List.assoc verb routes (Store.greet name));
      incr served
  | _ -> respond client "what?");
  Unix.close client

let () =
  Sys.set_signal Sys.sigterm (Sys.Signal_handle (fun _ -> stop := true));
  let socket = Unix.socket Unix.PF_INET Unix.SOCK_STREAM 0 in
  Unix.bind socket (Unix.ADDR_INET (Unix.inet_addr_loopback, 0));
  Unix.listen socket 16;
  (match Unix.getsockname socket with
  | Unix.ADDR_INET (_, port) -> Printf.printf "listening on %d\n%!" port
  | Unix.ADDR_UNIX _ -> ());
  while not !stop do
    try serve (fst (Unix.accept socket)) with Unix.Unix_error (Unix.EINTR, _, _) -> ()
  done;
  Printf.printf "done after %d requests\n" !served
