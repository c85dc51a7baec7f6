import asyncio, sys, os, tempfile, json, collections, statistics
from pathlib import Path
ROOT = Path(__file__).resolve().parents[1]
for p in ("agents","controller","proto",""): sys.path.insert(0, str(ROOT/p))
from tests.agent.harness import MEBIBYTE, Site
from tests.migration.move import Migration, begin, follow, permit, process_side
from tests.migration.workload import Workload, publish, reports
from serai.v1 import guest_pb2
async def main(ram, wl, hops, **opts):
    with tempfile.TemporaryDirectory() as t:
        publish(Path(t)/"images", wl)
        site = Site(Path(t)/"site")
        s = dict(driver="emulated", memory=4096*MEBIBYTE, environment={"SERAI_IMAGES": str(Path(t)/"images")})
        async with process_side(site,"alpha/a1",**s) as a, process_side(site,"beta/b1",**s) as b:
            await a.client.create(image=wl.name, memory_bytes=ram*MEBIBYTE, interfaces=[])
            await asyncio.sleep(2)
            src,dst=a,b
            allparts=collections.defaultdict(list)
            for h in range(hops):
                g = await src.client.get()
                assert g.state==guest_pb2.Guest.RUNNING,g
                m = await follow(src,(await begin(src,dst,g,**opts)).name)
                if m.state!=Migration.SUCCEEDED:
                    print(m.failure); break
                for k,v in m.downtime_parts_ms.items(): allparts[k].append(v)
                allparts["downtime"].append(m.report.downtime_ms); allparts["total"].append(m.report.total_ms); allparts["MB"].append(m.report.bytes_sent/1e6); allparts["rounds"].append(m.report.rounds)
                if h==hops-1:
                    for r in m.rounds: print(r.number,r.pages,r.zero_pages,round(r.seconds*1000,1),r.dirtied_pages)
                src,dst=dst,src
                call=src.client.guests.AttachConsole(); await call.write(guest_pb2.ConsoleInput(name="guests/g"))
                out=b""
                async with asyncio.timeout(20):
                    first=(await call.read()).data
                    n=len(reports(first))
                    while len(reports(out))<4: out+=(await call.read()).data
                call.cancel()
                rs=reports(first)[-2:]+reports(out)
                assert not any(r.errors for r in rs), rs
                allparts["gap"].append(max(r.gap_ms for r in rs))
            for k,v in allparts.items(): print(f"{k:14s} median {statistics.median(v):8.2f} max {max(v):8.2f}")
            for side in (a,b):
                for line in side.process.errors:
                    if '"ERROR"' in line or 'Traceback' in line: print(line[:600])
W={"idle":Workload("idle",0,0,64<<20),"rate":Workload("rate",64<<20,20<<20,64<<20),"flat":Workload("flat",192<<20,0,64<<20,paced=False)}
if __name__=="__main__":
    name,ram,hops=sys.argv[1],int(sys.argv[2]),int(sys.argv[3])
    asyncio.run(main(ram,W[name],hops,**json.loads(sys.argv[4]) if len(sys.argv)>4 else {}))
